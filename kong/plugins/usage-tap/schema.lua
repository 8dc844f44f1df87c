local typedefs = require "kong.db.schema.typedefs"

return {
  name = "usage-tap",
  fields = {
    { protocols = typedefs.protocols_http },
    { config = {
        type = "record",
        fields = {
          { guard = {
              description = "Answer 503 to a request token-quota made no decision about. Off: such requests pass unmetered"
                .. " by any budget; for routes that are only billed.",
              type = "boolean", required = true, default = true,
          } },
          { text_bytes_max = {
              description = "Generated text kept while no usage covers it, so that it can be counted when the stream ends early."
                .. " Beyond it only its length is known.",
              type = "integer", required = true, default = 131072, between = { 0, 16777216 },
          } },
          { log_usage = {
              description = "Put what was seen of the request, without text, into log records (`usage_tap`): http-log can then"
                .. " settle it at the collector's /log, a third chance beside the two plugins.",
              type = "boolean", required = true, default = false,
          } },
          { event_bytes_max = {
              description = "An event of a stream that hides usage waits for its end up to this length; a longer one passes"
                .. " as it comes, with its usage.",
              type = "integer", required = true, default = 1048576, between = { 1024, 67108864 },
          } },
        },
    } },
  },
}
