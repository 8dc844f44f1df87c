-- Keeps the published table (kong.ctx.shared.usage_tap) true after every event: what is known of usage, and how well.
--
-- Evidence is `exact` after the engine's final usage, `continuous` while a running usage covers all text that passed.
-- Text that no usage covers is kept (bounded) so that it can be counted; `usage` then holds what was known before it.

local shapes = require "kong.plugins.usage-tap.shapes"
local buffer = require "string.buffer"
local decode = require("cjson.safe").decode

local find, match, sub = string.find, string.match, string.sub
local floor = math.floor
local tonumber, type = tonumber, type
local usage_of = shapes.usage_of

local INDEX_DIGITS_MAX = 6 -- thousands of prompts, with several choices each
local NAME = '^"([%w_%-%.:/]+)"$'

-- The event types of /responses after which no more tokens come.
local TERMINAL = {
  ['"response.completed"'] = true,
  ['"response.incomplete"'] = true,
  ['"response.failed"'] = true,
}

local Meter = {}
Meter.__index = Meter


-- choices_per_prompt: where a request has several prompts, each of whose running usages tells its own prompt only.
local function new(published, endpoint, text_bytes_max, choices_per_prompt)
  return setmetatable({
    published = published,
    endpoint = endpoint,
    text_bytes_max = text_bytes_max,
    text = nil,           -- buffer of uncovered text
    text_kept = 0,
    by_choice = {},       -- running completion by choice index
    choices = 0,
    completion = 0,       -- sum of these
    choices_per_prompt = choices_per_prompt,
    by_prompt = {},       -- tokens of each prompt seen
    prompt = 0,           -- sum of these
    last_was_final = false, -- the last usage came with the only choice's finish reason
  }, Meter)
end


local function name_of(raw)
  return raw and match(raw, NAME)
end


local function failed(raw)
  return raw ~= nil and raw ~= "null"
end


function Meter:covered()
  if self.published.text_bytes > 0 then
    self.published.text_bytes = 0
    self.text_kept = 0
    self.text:reset()
  end
end


function Meter:uncovered(texts, lost)
  local published = self.published
  if published.evidence == "exact" then
    return
  end
  published.evidence = nil
  self.text = self.text or buffer.new()
  local bytes = published.text_bytes + (lost or 0)
  for i = 1, #texts do
    local raw = texts[i]
    local text = sub(raw, 2, -2)
    if find(text, "\\", 1, true) then
      local decoded = decode(raw)
      text = type(decoded) == "string" and decoded or text
    end
    bytes = bytes + #text
    local room = self.text_bytes_max - self.text_kept
    if room > 0 then
      text = sub(text, 1, room)
      self.text:put(text)
      self.text_kept = self.text_kept + #text
    end
  end
  published.text_bytes = bytes
end


function Meter:publish(prompt, completion, cached, reasoning, evidence)
  local usage = self.published.usage or {}
  usage.prompt, usage.completion, usage.cached, usage.reasoning = prompt, completion, cached, reasoning
  self.published.usage = usage
  self.published.evidence = evidence
  self:covered()
end


-- A running usage: the choice's own where several choices stream, the whole request's where an event carries them all.
function Meter:running(choices, prompt, completion, cached, reasoning)
  local published = self.published
  if published.evidence == "exact" then
    return
  end
  local index = choices and #choices == 1 and choices[1].index or "0"
  if not find(index, "^%d+$") or #index > INDEX_DIGITS_MAX then
    index = "0"
  end
  local by_choice = self.by_choice
  local before = by_choice[index]
  if before == nil then
    self.choices = self.choices + 1
  elseif before > completion then
    return -- running counts do not go back
  end
  by_choice[index] = completion
  self.completion = self.completion + completion - (before or 0)
  local per_prompt = self.choices_per_prompt
  if per_prompt then
    local number = floor(tonumber(index) / per_prompt)
    self.prompt = self.prompt + prompt - (self.by_prompt[number] or 0)
    self.by_prompt[number] = prompt
    prompt, cached = self.prompt, nil
  end
  if self.choices > 1 then
    completion, reasoning = self.completion, nil
    published.choices = by_choice
    local usage = published.usage
    if not per_prompt and usage and usage.prompt > prompt then
      prompt, cached = usage.prompt, usage.cached
    end
  end
  self:publish(prompt, completion, cached, reasoning, "continuous")
end


function Meter:openai(doc)
  local published = self.published
  local choices = doc.choices
  local first = choices and choices[1]
  if first and not published.finish and (first.index == "0" or first.index == nil) then
    published.finish = name_of(first.finish)
  end
  if doc.marker then
    if doc.marker == "[DONE]" and self.last_was_final and published.evidence == "continuous" and not published.error then
      published.evidence = "exact"
    end
    return false
  end
  if not doc.usage then
    return false
  end
  local prompt, completion, cached, reasoning = usage_of(self.endpoint, doc.usage)
  if not prompt then
    return false
  end
  if not first then
    self:publish(prompt, completion, cached, reasoning, "exact")
  else
    self.last_was_final = #choices == 1 and self.choices <= 1 and name_of(first.finish) ~= nil
    self:running(choices, prompt, completion, cached, reasoning)
  end
  return true
end


function Meter:responses(doc)
  if TERMINAL[doc.type] then
    self.published.finish = name_of(doc.incomplete) or name_of(doc.status)
  end
  if doc.type == '"error"' or doc.type == '"response.failed"' then
    self.published.error = true
  end
  local prompt, completion, cached, reasoning
  if doc.usage then
    prompt, completion, cached, reasoning = usage_of(self.endpoint, doc.usage)
  end
  if not prompt then
    return false
  end
  if TERMINAL[doc.type] then
    self:publish(prompt, completion, cached, reasoning, "exact")
  else
    self:running(nil, prompt, completion, cached, reasoning)
  end
  return true
end


-- message_start tells the prompt, message_delta the completion (some leave the prompt out there).
function Meter:messages(doc)
  local published = self.published
  if doc.type == '"error"' then
    published.error = true
  end
  published.finish = published.finish or name_of(doc.finish)
  if not doc.usage then
    return false
  end
  local prompt, completion, cached, reasoning = usage_of(self.endpoint, doc.usage)
  if not completion then
    return false
  end
  if not prompt then
    local known = published.usage
    if not known then
      return false
    end
    prompt, cached = known.prompt, known.cached
  end
  if name_of(doc.finish) then
    self:publish(prompt, completion, cached, reasoning, "exact")
  else
    self:running(nil, prompt, completion, cached, reasoning)
  end
  return true
end


local READERS = {
  chat = Meter.openai,
  completions = Meter.openai,
  embeddings = Meter.openai,
  responses = Meter.responses,
  messages = Meter.messages,
}


-- One event of a stream. Returns true where the event carries nothing but usage.
function Meter:event(doc)
  local published = self.published
  if not published.engine_id then
    published.engine_id = name_of(doc.id)
  end
  if failed(doc.error) then
    published.error = true
  end
  local counted = READERS[self.endpoint](self, doc)
  if not counted and (doc.texts or doc.lost) then
    self:uncovered(doc.texts or {}, doc.lost)
  end
  return doc.usage ~= nil and doc.choices ~= nil and #doc.choices == 0
end


-- A whole answer.
function Meter:body(doc)
  local published = self.published
  published.engine_id = name_of(doc.id)
  published.error = failed(doc.error) or nil
  local first = doc.choices and doc.choices[1]
  published.finish = name_of(first and first.finish or doc.finish or doc.incomplete or doc.status)
  if doc.usage then
    local prompt, completion, cached, reasoning = usage_of(self.endpoint, doc.usage)
    if prompt then
      self:publish(prompt, completion, cached, reasoning, "exact")
      return
    end
  end
  self:cut_body(doc)
end


-- An answer that will not be whole, or has no usage: its text is all that tells of it.
function Meter:cut_body(doc)
  if doc.texts or doc.lost then
    self:uncovered(doc.texts or {}, doc.lost)
  end
end


-- The uncovered text, for the log phase.
function Meter:uncovered_text()
  return self.text and self.text:tostring() or nil
end


return { new = new }
