-- Server-sent events, read as they pass and, where usage is to be hidden, cut without touching any other byte.
--
-- Chunks may end anywhere. Without hiding, a chunk leaves as the very string that came, and nothing is held. With hiding,
-- the bytes of an unfinished event wait for its end (an event leaves in the call that brought its last byte), up to
-- `bytes_max`: a longer event goes out as it is, usage and all, because an answer matters more than a number the client
-- could have asked for.

local byte, find, sub = string.byte, string.find, string.sub
local concat = table.concat

local HEAD, DATA, OTHER = 1, 2, 3 -- in a line: its field name, the value of `data:`, anything else
local NEWLINE, RETURN = 10, 13
local FIELD = { byte("data:", 1, 5) }

local Sse = {}
Sse.__index = Sse


-- scanner: see scanner.lua. on_event(doc): called at each event with data; true drops the event where `hide` is set.
local function new(scanner, on_event, hide, bytes_max)
  return setmetatable({
    scanner = scanner,
    on_event = on_event,
    hide = hide,
    bytes_max = bytes_max,
    base = 0,          -- bytes of the stream before this chunk
    event_base = 0,    -- bytes of the stream before the event we are in
    state = HEAD,
    matched = 0,       -- bytes of `data:` matched in this line
    has_data = false,
    held = {},
    held_bytes = 0,
    held_before = {},  -- as it was when the last feed began
    released = false,  -- this event outgrew bytes_max and goes out as it comes
  }, Sse)
end


-- The event without the spans; their places count from the start of the stream.
local function splice(event, spans, event_base)
  local out, cursor = {}, 1
  for i = 1, #spans do
    local from, to = spans[i].from - event_base, spans[i].to - event_base
    if from > cursor then
      out[#out + 1] = sub(event, cursor, from - 1)
    end
    cursor = to + 1
  end
  out[#out + 1] = sub(event, cursor)
  return concat(out)
end


-- What the client gets to see of an event whose last byte is chunk[to]: nil for "as it came".
local function rewritten(self, drop, spans, chunk, from, to)
  if not self.hide or self.released then
    return nil
  elseif drop then
    return ""
  elseif spans then
    return splice(concat(self.held) .. sub(chunk, from, to), spans, self.event_base)
  end
end


function Sse:feed(chunk)
  local scanner, base, hide = self.scanner, self.base, self.hide
  local state, matched = self.state, self.matched
  local size = #chunk
  local i = 1
  local event_from = 1          -- where in the chunk the event we are in begins, or goes on
  self.held_before = self.held
  local out, cursor = nil, 1    -- what was changed so far, and the first byte behind it

  while i <= size do
    if state == HEAD then
      local b = byte(chunk, i)
      i = i + 1
      if b == NEWLINE then
        if matched == 0 then -- an empty line ends the event
          local drop, spans
          if self.has_data then
            drop, spans = self.on_event(scanner.doc), scanner.doc.spans
            scanner:reset()
            self.has_data = false
          end
          local text = rewritten(self, drop, spans, chunk, event_from, i - 1)
          if text then
            out = out or {}
            if self.held_bytes == 0 then
              out[#out + 1] = sub(chunk, cursor, event_from - 1)
            end
            out[#out + 1] = text
            cursor = i
          elseif self.held_bytes > 0 then
            out = out or {}
            out[#out + 1] = concat(self.held)
          end
          if self.held_bytes > 0 then
            self.held, self.held_bytes = {}, 0
          end
          self.released = false
          event_from = i
          self.event_base = base + i - 1
        else
          matched = 0
        end
      elseif b == FIELD[matched + 1] then
        matched = matched + 1
        if matched == 5 then
          state = DATA
          self.has_data = true
        end
      elseif not (b == RETURN and matched == 0) then
        state = OTHER
      end
    else
      local newline = find(chunk, "\n", i, true)
      if state == DATA then
        -- A `\r` before the newline is white space to JSON.
        local stop = newline and newline - 1 or size
        if stop >= i then
          scanner:feed(chunk, i, stop, base)
        end
      end
      if newline then
        state, matched = HEAD, 0
        i = newline + 1
      else
        i = size + 1
      end
    end
  end

  self.base = base + size
  self.state, self.matched = state, matched

  local waits = hide and not self.released and event_from <= size
  if not waits and not out then
    return chunk
  end
  out = out or {}
  if not waits then
    out[#out + 1] = sub(chunk, cursor)
    return concat(out)
  end
  -- cursor is behind event_from only where the event before it was changed, and equal to it then
  out[#out + 1] = sub(chunk, cursor, event_from - 1)
  self.held[#self.held + 1] = sub(chunk, event_from)
  self.held_bytes = self.held_bytes + size - event_from + 1
  if self.held_bytes > self.bytes_max then
    out[#out + 1] = concat(self.held)
    self.held, self.held_bytes = {}, 0
    self.released = true
  end
  return concat(out)
end


-- The stream is over: an event without its empty line counts if its document is whole. Returns the bytes still held.
function Sse:finish()
  local scanner = self.scanner
  local drop, spans = false, scanner.doc.spans
  if self.has_data then
    self.has_data = false
    if scanner:complete() then
      drop = self.on_event(scanner.doc)
    else
      drop = scanner.in_span or spans ~= nil -- a client cannot read half an event anyway
    end
  end
  local rest = self:release()
  if drop then
    return ""
  elseif spans and rest ~= "" then
    return splice(rest, spans, self.event_base)
  end
  return rest
end


-- After feed(chunk) failed: everything not yet sent, as it came.
function Sse:rescue(chunk)
  return concat(self.held_before) .. chunk
end


-- Gives up everything held, as it came.
function Sse:release()
  local rest = concat(self.held)
  self.held, self.held_bytes = {}, 0
  return rest
end


return { new = new }
