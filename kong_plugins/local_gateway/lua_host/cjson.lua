-- lua-cjson's encode and decode for code that runs outside OpenResty: the same values, null, limits and refusals, not its speed.
-- Returns the `cjson.safe` flavour: nil and a message instead of an error.

local byte, char, find, format, sub = string.byte, string.char, string.find, string.format, string.sub

local DEPTH_MAX = 1000
local NULL = newproxy(false)  -- type() says "userdata", as for cjson's
local EMPTY_ARRAY = newproxy(false)
local ARRAY_MT = {}

local ESCAPES = { ['"'] = '"', ["\\"] = "\\", ["/"] = "/", b = "\b", f = "\f", n = "\n", r = "\r", t = "\t" }

local function utf8(code)
  if code < 0x80 then
    return char(code)
  elseif code < 0x800 then
    return char(0xC0 + math.floor(code / 0x40), 0x80 + code % 0x40)
  elseif code < 0x10000 then
    return char(0xE0 + math.floor(code / 0x1000), 0x80 + math.floor(code / 0x40) % 0x40, 0x80 + code % 0x40)
  end
  return char(0xF0 + math.floor(code / 0x40000), 0x80 + math.floor(code / 0x1000) % 0x40,
              0x80 + math.floor(code / 0x40) % 0x40, 0x80 + code % 0x40)
end

local function fail(what, at)
  error({ cjson = format("Expected %s at character %d", what, at) }, 0)
end

local function skip(s, i)
  return find(s, "[^ \t\r\n]", i) or #s + 1
end

local function code_unit(s, i)
  local hex = sub(s, i, i + 3)
  if not find(hex, "^%x%x%x%x$") then
    fail("valid unicode escape", i)
  end
  return tonumber(hex, 16)
end

local function decode_string(s, i)
  local out, from = {}, i + 1
  local at = from
  while true do
    local stop = find(s, '[%z\1-\31"\\]', at)
    if not stop then
      fail("closing quote", #s + 1)
    end
    local b = byte(s, stop)
    if b == 34 then
      out[#out + 1] = sub(s, from, stop - 1)
      return table.concat(out), stop + 1
    elseif b ~= 92 then
      fail("no control character in a string", stop)
    end
    out[#out + 1] = sub(s, from, stop - 1)
    local escape = sub(s, stop + 1, stop + 1)
    if escape == "u" then
      local unit = code_unit(s, stop + 2)
      at = stop + 6
      if unit >= 0xD800 and unit < 0xDC00 then
        if sub(s, at, at + 1) ~= "\\u" then
          fail("low surrogate", at)
        end
        local low = code_unit(s, at + 2)
        if low < 0xDC00 or low > 0xDFFF then
          fail("low surrogate", at)
        end
        unit = 0x10000 + (unit - 0xD800) * 0x400 + (low - 0xDC00)
        at = at + 6
      elseif unit >= 0xDC00 and unit < 0xE000 then
        fail("high surrogate", stop)
      end
      out[#out + 1] = utf8(unit)
    else
      local plain = ESCAPES[escape]
      if not plain then
        fail("valid escape", stop)
      end
      out[#out + 1] = plain
      at = stop + 2
    end
    from = at
  end
end

local decode_value

local function decode_object(s, i, depth)
  local object = {}
  i = skip(s, i + 1)
  if byte(s, i) == 125 then
    return object, i + 1
  end
  while true do
    if byte(s, i) ~= 34 then
      fail("object key string", i)
    end
    local key, value
    key, i = decode_string(s, i)
    i = skip(s, i)
    if byte(s, i) ~= 58 then
      fail("colon", i)
    end
    value, i = decode_value(s, skip(s, i + 1), depth)
    object[key] = value
    i = skip(s, i)
    local b = byte(s, i)
    if b == 125 then
      return object, i + 1
    elseif b ~= 44 then
      fail("comma or object end", i)
    end
    i = skip(s, i + 1)
  end
end

local function decode_array(s, i, depth)
  local array, n = {}, 0
  i = skip(s, i + 1)
  if byte(s, i) == 93 then
    return array, i + 1
  end
  while true do
    n = n + 1
    array[n], i = decode_value(s, skip(s, i), depth)
    i = skip(s, i)
    local b = byte(s, i)
    if b == 93 then
      return array, i + 1
    elseif b ~= 44 then
      fail("comma or array end", i)
    end
    i = i + 1
  end
end

local LITERALS = { ["true"] = true, ["false"] = false, ["null"] = NULL }

function decode_value(s, i, depth)
  if depth > DEPTH_MAX then
    error({ cjson = format("Found too many nested data structures (%d)", depth) }, 0)
  end
  local b = byte(s, i)
  if b == 34 then
    return decode_string(s, i)
  elseif b == 123 then
    return decode_object(s, i, depth + 1)
  elseif b == 91 then
    return decode_array(s, i, depth + 1)
  end
  local _, stop = find(s, "^%a+", i)
  if stop then
    local value = LITERALS[sub(s, i, stop)]
    if value == nil then
      fail("value", i)
    end
    return value, stop + 1
  end
  _, stop = find(s, "^-?%d[%d.eE+-]*", i)
  local number = stop and tonumber(sub(s, i, stop))
  if not number then
    fail("value", i)
  end
  return number, stop + 1
end

local QUOTED = { ['"'] = '\\"', ["\\"] = "\\\\", ["/"] = "\\/", ["\b"] = "\\b", ["\f"] = "\\f", ["\n"] = "\\n",
                 ["\r"] = "\\r", ["\t"] = "\\t" }

local function quote(s)
  return '"' .. s:gsub('[%z\1-\31"\\/\127]', function(c)
    return QUOTED[c] or format("\\u%04x", byte(c))
  end) .. '"'
end

local encode_value

local function encode_table(value, out, depth)
  if depth > DEPTH_MAX then
    error({ cjson = format("Cannot serialise, excessive depth (%d)", depth) }, 0)
  end
  local count, highest = 0, 0
  local array = getmetatable(value) == ARRAY_MT
  local is_list = true
  for key in pairs(value) do
    if type(key) == "number" and key >= 1 and key % 1 == 0 then
      count, highest = count + 1, math.max(highest, key)
    else
      is_list = false
    end
  end
  if is_list and highest > 0 then
    if highest > 10 and highest > count * 2 then
      error({ cjson = "Cannot serialise table: excessively sparse array" }, 0)
    end
    out[#out + 1] = "["
    for index = 1, highest do
      out[#out + 1] = index > 1 and "," or nil
      encode_value(value[index] == nil and NULL or value[index], out, depth + 1)
    end
    out[#out + 1] = "]"
    return
  elseif array and is_list then
    out[#out + 1] = "[]"
    return
  end
  out[#out + 1] = "{"
  local first = true
  for key, item in pairs(value) do
    if not first then
      out[#out + 1] = ","
    end
    first = false
    if type(key) ~= "string" and type(key) ~= "number" then
      error({ cjson = "Cannot serialise table: table key must be a number or string" }, 0)
    end
    out[#out + 1] = quote(tostring(key))
    out[#out + 1] = ":"
    encode_value(item, out, depth + 1)
  end
  out[#out + 1] = "}"
end

function encode_value(value, out, depth)
  local kind = type(value)
  if value == NULL or value == nil then
    out[#out + 1] = "null"
  elseif value == EMPTY_ARRAY then
    out[#out + 1] = "[]"
  elseif kind == "string" then
    out[#out + 1] = quote(value)
  elseif kind == "boolean" then
    out[#out + 1] = tostring(value)
  elseif kind == "number" then
    if value ~= value or value == math.huge or value == -math.huge then
      error({ cjson = "Cannot serialise number: must not be NaN or Inf" }, 0)
    end
    out[#out + 1] = format("%.14g", value)
  elseif kind == "table" then
    encode_table(value, out, depth + 1)
  else
    error({ cjson = "Cannot serialise " .. kind .. ": type not supported" }, 0)
  end
end

local function guarded(work)
  return function(value)
    local ok, result = pcall(work, value)
    if ok then
      return result
    elseif type(result) == "table" then
      return nil, result.cjson
    end
    error(result, 0)
  end
end

return {
  null = NULL,
  empty_array = EMPTY_ARRAY,
  array_mt = ARRAY_MT,
  empty_array_mt = ARRAY_MT,
  encode = guarded(function(value)
    local out = {}
    encode_value(value, out, 0)
    return table.concat(out)
  end),
  decode = guarded(function(s)
    local value, stop = decode_value(s, skip(s, 1), 0)
    stop = skip(s, stop)
    if stop <= #s then
      fail("the end", stop)
    end
    return value
  end),
}
