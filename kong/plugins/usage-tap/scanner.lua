-- A JSON reader that takes a document in any pieces, keeps nothing but the members it was asked for, and never fails.
--
-- It follows structure only: a `"usage":` inside a string or a nested object is not the top-level one. It does not check
-- that JSON is well-formed; a document that is not gives fewer members, never an error.
--
-- What to keep is a tree of nodes, one per path:
--   { field = "id", cap = 256 }            a leaf: its raw JSON text goes to record.id; longer than `cap` bytes: "" instead
--   { text = true }                        a leaf: a string appended raw to doc.texts; beyond the cap only counted (doc.lost)
--                                          and closed there
--   { members = { name = node, ... } }     an object to descend into
--   { elements = node }                    an array to descend into
--   record = "usage"                       on an object: a new record at doc.usage; leaves below go there
--   list = "choices"                       on an object: a new record appended to doc.choices
--   mark = "choices"                       on an array: doc.choices exists from here on, be it empty
--   span = true                            on a top-level member: its place goes to doc.spans (see `sse.lua`)

local byte, find, sub = string.byte, string.find, string.sub
local concat = table.concat
local max = math.max

local VALUE, SCALAR, STRING, AFTER, KEY, KEYSTRING, COLON, SKIP, SKIPSTRING, DONE = 1, 2, 3, 4, 5, 6, 7, 8, 9, 10
local QUOTE, BACKSLASH, COMMA, COLON_SIGN, OPEN_OBJECT, CLOSE_OBJECT, OPEN_ARRAY, CLOSE_ARRAY = 34, 92, 44, 58, 123, 125, 91, 93
local SPACE = 32

local KEY_BYTES_MAX = 64 -- no member we ask for has a longer name
local TEXT_CAP = 65536 -- of a document's texts together
local LIST_MAX = 128   -- records; an engine gives one per choice

local Scanner = {}
Scanner.__index = Scanner


-- spans: whether places of `span` members are wanted.
local function new(root, spans)
  local self = setmetatable({ root = root, spans = spans or false, nodes = {}, records = {} }, Scanner)
  self:reset()
  return self
end


-- Ready for the next document. Positions count on from `base`, so that they stay valid in a stream.
function Scanner:reset()
  self.state = VALUE
  self.depth = 0       -- containers we are in that are on a path we were asked for
  self.node = self.root
  self.record = nil
  self.skipped = 0     -- containers we are in that are not
  self.escaped = false -- the last byte of the piece was an unfinished escape
  self.key_piece = nil -- what was read of a key so far
  self.capture = nil   -- node of the leaf being kept
  self.pieces = nil
  self.kept = 0
  self.separator = 0   -- place of the last `{` or `,` of the top level
  self.after_comma = false
  self.open_span = nil -- a span at the head of its object takes the comma behind it along
  self.in_span = false -- a span's key was seen and its value is not over
  self.doc = {}
end


-- Index of the closing quote in s[i..j], or nil with the escape state kept for the next piece.
local function string_end(self, s, i, j)
  if self.escaped then
    self.escaped = false
    i = i + 1
  end
  while i <= j do
    local quote = find(s, '"', i, true)
    if not quote or quote > j then
      quote = nil
    end
    local last = (quote or j + 1) - 1
    local run = last
    while run >= i and byte(s, run) == BACKSLASH do
      run = run - 1
    end
    local odd = (last - run) % 2 == 1
    if not quote then
      self.escaped = odd
      return nil
    elseif not odd then
      return quote
    end
    i = quote + 1
  end
  return nil
end


local function keep(self, s, from, to)
  local length = to - from + 1
  if length <= 0 then
    return
  end
  local kept = self.kept + length
  self.kept = kept
  if kept <= (self.capture.cap or TEXT_CAP) then
    local pieces = self.pieces
    if pieces then
      pieces[#pieces + 1] = sub(s, from, to)
    else
      self.pieces = { sub(s, from, to) }
    end
  elseif not self.capture.text then
    self.pieces = nil
  else -- of a text the beginning is worth keeping
    local room = TEXT_CAP - (kept - length)
    if room > 0 then
      local pieces = self.pieces or {}
      pieces[#pieces + 1] = sub(s, from, from + room - 1)
      self.pieces = pieces
    end
  end
end


-- The leaf's last byte is s[to]; `from` is its first in this piece. cut: there is more of it that never came.
local function leaf_end(self, s, from, to, cut)
  local node = self.capture
  local raw
  if not self.pieces and self.kept == 0 and to - from < (node.cap or TEXT_CAP) then
    raw = sub(s, from, to)
  else
    keep(self, s, from, to)
    raw = self.pieces and concat(self.pieces) or ""
  end
  local doc = self.doc
  if not node.text then
    local record = self.record or doc
    record[node.field] = raw
  elseif byte(raw, 1) == QUOTE then
    if cut or self.kept > #raw then
      raw = raw .. '"'
      doc.lost = (doc.lost or 0) + max(0, self.kept - #raw + (cut and 1 or 0))
    end
    local bytes = (doc.text_bytes or 0) + #raw
    doc.text_bytes = bytes
    local texts = doc.texts
    if bytes > TEXT_CAP + 1 then -- one that was closed here still fits
      doc.lost = (doc.lost or 0) + #raw - 2
    elseif #raw > 2 then
      if texts then
        texts[#texts + 1] = raw
      else
        doc.texts = { raw }
      end
    end
  end
  self.capture, self.pieces, self.kept = nil, nil, 0
end


local function span_end(self, to)
  self.in_span = false
  local doc = self.doc
  local span = { from = self.separator, to = to }
  if not self.after_comma then
    span.from = self.separator + 1
    self.open_span = span
  end
  local spans = doc.spans
  if spans then
    spans[#spans + 1] = span
  else
    doc.spans = { span }
  end
end


local function push(self, node)
  local depth = self.depth + 1
  self.nodes[depth] = node
  self.records[depth] = self.record or false
  self.depth = depth
  local doc = self.doc
  if node.record then
    local record = {}
    doc[node.record] = record
    self.record = record
  elseif node.list then
    local record, list = {}, doc[node.list]
    if list and #list < LIST_MAX then
      list[#list + 1] = record
    elseif not list then
      doc[node.list] = { record }
    end
    self.record = record
  elseif node.mark and not doc[node.mark] then
    doc[node.mark] = {}
  end
end


-- Takes s[i..j]. `base`: bytes of the stream before s[1].
function Scanner:feed(s, i, j, base)
  local state = self.state
  local from = i -- of the leaf being kept
  while i <= j do
    if state == STRING then
      local quote = string_end(self, s, i, j)
      if not quote then
        break
      end
      if self.capture then
        leaf_end(self, s, from, quote)
      end
      if self.in_span and self.depth == 1 then
        span_end(self, base + quote)
      end
      state = AFTER
      i = quote + 1

    elseif state == KEYSTRING then
      local quote = string_end(self, s, i, j)
      local last = quote and quote - 1 or j
      local start = self.key_piece
      if start == nil then
        self.key_piece = sub(s, i, last)
      elseif #start <= KEY_BYTES_MAX then
        self.key_piece = start .. sub(s, i, last)
      end
      if not quote then
        break
      end
      local node = self.nodes[self.depth].members[self.key_piece]
      self.key_piece = nil
      self.node = node
      if self.depth == 1 then
        self.in_span = self.spans and node ~= nil and node.span == true
      end
      state = COLON
      i = quote + 1

    elseif state == SKIPSTRING then
      local quote = string_end(self, s, i, j)
      if not quote then
        break
      end
      state = SKIP
      i = quote + 1

    elseif state == SKIP then
      local skipped = self.skipped
      while i <= j do
        local b = byte(s, i)
        i = i + 1
        if b == QUOTE then
          state = SKIPSTRING
          break
        elseif b == OPEN_OBJECT or b == OPEN_ARRAY then
          skipped = skipped + 1
        elseif b == CLOSE_OBJECT or b == CLOSE_ARRAY then
          skipped = skipped - 1
          if skipped == 0 then
            if self.capture then
              leaf_end(self, s, from, i - 1)
            end
            if self.depth == 0 then
              state = DONE
            else
              if self.in_span and self.depth == 1 then
                span_end(self, base + i - 1)
              end
              state = AFTER
            end
            break
          end
        end
      end
      self.skipped = skipped

    elseif state == DONE then
      i = j + 1

    else
      local b = byte(s, i)
      if b <= SPACE and state ~= SCALAR then
        i = i + 1

      elseif state == AFTER then
        i = i + 1
        local depth = self.depth
        if b == COMMA then
          local node = self.nodes[depth]
          if node.members then
            state = KEY
            if depth == 1 then
              -- A span at the head takes this comma along, and the next member is the head then.
              local span = self.open_span
              self.separator, self.after_comma = base + i - 1, span == nil
              if span then
                span.to = base + i - 1
                self.open_span = nil
              end
            end
          else
            state = VALUE
            self.node = node.elements
          end
        elseif b == CLOSE_OBJECT or b == CLOSE_ARRAY then
          self.record = self.records[depth] or nil
          depth = depth - 1
          self.depth = depth
          self.open_span = nil
          if depth == 0 then
            state = DONE
          elseif self.in_span and depth == 1 then
            span_end(self, base + i - 1)
          end
        end

      elseif state == KEY then
        if b == QUOTE then
          state = KEYSTRING
          i = i + 1
        elseif b == CLOSE_OBJECT then
          state = AFTER -- which closes it
        else
          i = i + 1
        end

      elseif state == COLON then
        if b == COLON_SIGN then
          state = VALUE
        end
        i = i + 1

      elseif state == VALUE then
        local node = self.node
        from = i
        if b == QUOTE then
          if node and (node.field or node.text) then
            self.capture = node
          end
          state = STRING
          i = i + 1
          if self.depth == 0 then
            state = SKIPSTRING -- a bare string is no document of ours
            self.capture, self.skipped = nil, 1
          end
        elseif b == OPEN_OBJECT and node and node.members then
          push(self, node)
          if self.depth == 1 then
            self.separator, self.after_comma = base + i, false
          end
          state = KEY
          i = i + 1
        elseif b == OPEN_ARRAY and node and node.elements then
          push(self, node)
          state = VALUE
          self.node = node.elements
          i = i + 1
        elseif b == OPEN_OBJECT or b == OPEN_ARRAY then
          if node and node.field then
            self.capture = node
          end
          self.skipped = 1
          state = SKIP
          i = i + 1
        elseif b == CLOSE_ARRAY or b == CLOSE_OBJECT or b == COMMA then
          if self.depth == 0 then
            state = DONE
          else
            state = AFTER -- an empty array, or a member without a value
          end
        else
          if node and node.field then
            self.capture = node
          end
          state = SCALAR
        end

      else -- SCALAR: up to the delimiter, which AFTER reads
        local stop = i
        while stop <= j do
          b = byte(s, stop)
          if b == COMMA or b == CLOSE_OBJECT or b == CLOSE_ARRAY or b <= SPACE then
            break
          end
          stop = stop + 1
        end
        i = stop
        if stop <= j then
          if self.capture then
            leaf_end(self, s, from, stop - 1)
          end
          if self.in_span and self.depth == 1 then
            span_end(self, base + stop - 1)
          end
          state = self.depth == 0 and DONE or AFTER
        end
      end
    end
  end
  if self.capture then
    keep(self, s, from, j)
  end
  self.state = state
end


-- No more will come: what there is of an unfinished text counts too.
function Scanner:cut()
  if self.capture and self.capture.text then
    leaf_end(self, "", 1, 0, true)
  end
end


-- True once the document's last bracket was read.
function Scanner:complete()
  return self.state == DONE
end


return { new = new }
