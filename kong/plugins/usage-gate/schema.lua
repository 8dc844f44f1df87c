local typedefs = require "kong.db.schema.typedefs"

return {
  name = "usage-gate",
  fields = {
    { protocols = typedefs.protocols_http },
    { config = {
        type = "record",
        fields = {
          { max_body_bytes = {
              description = "A longer request body is refused with 413, unread when it tells its length."
                .. " Set client_max_body_size too: it bounds bodies that do not.",
              type = "integer", required = true, default = 4194304, between = { 1, 1073741824 },
          } },
          { headers = {
              description = "Request headers handed on, for identity by header and for attributes of billing events.",
              type = "array", required = true, default = {}, elements = typedefs.header_name,
          } },
          { claims = {
              description = "Claims of the token that Kong's jwt plugin verified, handed on for attributes of billing"
                .. " events: text, numbers and booleans.",
              type = "array", required = true, default = {},
              elements = { type = "string", len_max = 128, match = "^[%w.:/][%w_.:/-]*$" },
          } },
          { strip_credentials = {
              description = "Headers, and query arguments of the same name, that carry a client's key: never sent upstream.",
              type = "array", required = true, elements = typedefs.header_name,
              default = { "authorization", "apikey", "x-api-key" },
          } },
          { strip_headers = {
              description = "Headers that name an identity or steer the engine, which a client could forge, and"
                .. " Idempotency-Key, which is known per tenant only here: never sent upstream.",
              type = "array", required = true, elements = typedefs.header_name,
              default = {
                "proxy-authorization",
                "x-authenticated-userid",
                "x-authenticated-groups",
                "x-authenticated-scope",
                "x-data-parallel-rank",
                "x-vllm-priority",
                "x-session-id",
                "xprefixaffinity",
                "x-request-id",
                "endpoint-load-metrics-format",
                "idempotency-key",
              },
          } },
        },
    } },
  },
}
