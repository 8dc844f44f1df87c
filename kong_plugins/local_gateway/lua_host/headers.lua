-- Headers as nginx keeps them: an ordered list of { lower-case name, name as sent, value }; and Kong's rules for them.

local lower, gsub, format = string.lower, string.gsub, string.format

local function dashed(name)
  return (gsub(lower(name), "_", "-"))
end

local function first(list, name)
  name = dashed(name)
  for i = 1, #list do
    if dashed(list[i][1]) == name then
      return list[i][3]
    end
  end
  return nil
end

local function clear(list, name)
  name = lower(name)
  local kept = 0
  for i = 1, #list do
    local entry = list[i]
    list[i] = nil
    if entry[1] ~= name then
      kept = kept + 1
      list[kept] = entry
    end
  end
end

local function check_value(name, value)
  if type(name) ~= "string" then
    error(format("invalid header name %q: got %s, expected string", tostring(name), type(name)), 3)
  end
  local kind = type(value)
  if kind ~= "string" and kind ~= "number" and kind ~= "boolean" and kind ~= "table" then
    error(format("invalid header value for %q: got %s, expected string, number, boolean or array of strings", name, kind), 3)
  end
end

local function add(list, name, value)
  if type(value) == "table" then
    for i = 1, #value do
      add(list, name, value[i])
    end
    return
  end
  -- nginx cuts nothing out of a value, but OpenResty escapes line breaks so that no header can be smuggled in
  value = gsub(tostring(value), "[\r\n%z]", function(c) return format("%%%02X", c:byte()) end)
  list[#list + 1] = { lower(name), name, value }
end

local function set(list, name, value)
  clear(list, name)
  add(list, name, value)
end

local function as_table(list)
  local all = {}
  for i = 1, #list do
    local name, value = list[i][1], list[i][3]
    local seen = all[name]
    if seen == nil then
      all[name] = value
    elseif type(seen) == "table" then
      seen[#seen + 1] = value
    else
      all[name] = { seen, value }
    end
  end
  return setmetatable(all, {
    __index = function(t, key)
      return type(key) == "string" and rawget(t, dashed(key)) or nil
    end,
  })
end

return { first = first, clear = clear, check = check_value, add = add, set = set, as_table = as_table }
