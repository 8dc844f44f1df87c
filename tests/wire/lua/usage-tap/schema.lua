return {
  name = "usage-tap",
  fields = { { config = { type = "record", fields = { { guard = { type = "boolean", default = true } } } } } },
}
