-- What each endpoint's answers look like: which members to keep (trees for scanner.lua), and how usage is written.

local find = string.find
local tonumber = tonumber

local COUNT_DIGITS_MAX = 9 -- no request uses a billion tokens; what claims so is not believed
local COUNT = "^%d+$"

local function leaf(field, cap)
  return { field = field, cap = cap or 64 }
end

local TEXT = { text = true }
local ID = leaf("id", 256)
local ERROR = leaf("error", 64)

local function details(member, field)
  return { members = { [member] = leaf(field) } }
end

local OPENAI_USAGE = {
  record = "usage",
  span = true,
  members = {
    prompt_tokens = leaf("prompt"),
    completion_tokens = leaf("completion"),
    prompt_tokens_details = details("cached_tokens", "cached"),
    completion_tokens_details = details("reasoning_tokens", "reasoning"),
  },
}

local RESPONSES_USAGE = {
  record = "usage",
  members = {
    input_tokens = leaf("prompt"),
    output_tokens = leaf("completion"),
    input_tokens_details = details("cached_tokens", "cached"),
    output_tokens_details = details("reasoning_tokens", "reasoning"),
  },
}

local ANTHROPIC_USAGE = {
  record = "usage",
  members = {
    input_tokens = leaf("prompt"),
    output_tokens = leaf("completion"),
    cache_read_input_tokens = leaf("cached"),
    cache_creation_input_tokens = leaf("created"),
  },
}

local function choices(members)
  members.index = leaf("index")
  members.finish_reason = leaf("finish")
  return { mark = "choices", elements = { list = "choices", members = members } }
end

local FUNCTION = { members = { name = TEXT, arguments = TEXT } }

local CHAT_DELTA = {
  members = {
    content = TEXT,
    reasoning = TEXT,
    reasoning_content = TEXT,
    refusal = TEXT,
    tool_calls = { elements = { members = { ["function"] = FUNCTION } } },
    function_call = FUNCTION,
  },
}

local function openai(choice)
  return {
    field = "marker", -- the raw `[DONE]` of a stream's last event
    cap = 16,
    members = { id = ID, error = ERROR, usage = OPENAI_USAGE, choices = choices(choice) },
  }
end

-- A whole answer's text stands before its usage, so a client that leaves in between has the one without the other.
local function response(output)
  return {
    id = ID,
    error = ERROR,
    status = leaf("status"),
    incomplete_details = { members = { reason = leaf("incomplete") } },
    usage = RESPONSES_USAGE,
    output = output,
  }
end

local function message(content)
  return {
    id = ID,
    error = ERROR,
    type = leaf("type"),
    stop_reason = leaf("finish"),
    usage = ANTHROPIC_USAGE,
    content = content,
  }
end

local PARTS = { elements = { members = { text = TEXT, thinking = TEXT } } }
local ITEMS = { elements = { members = { name = TEXT, arguments = TEXT, content = PARTS } } }

local BODY = {
  chat = openai({ message = CHAT_DELTA }),
  completions = openai({ text = TEXT }),
  embeddings = openai({}),
  responses = { members = response(ITEMS) },
  messages = { members = message(PARTS) },
}

local STREAM = {
  chat = openai({ delta = CHAT_DELTA }),
  completions = openai({ text = TEXT }),
  responses = {
    members = { type = leaf("type"), delta = TEXT, error = ERROR, response = { members = response() } },
  },
  messages = {
    members = {
      type = leaf("type"),
      error = ERROR,
      message = { members = message() },
      usage = ANTHROPIC_USAGE,
      delta = { members = { text = TEXT, thinking = TEXT, partial_json = TEXT, stop_reason = leaf("finish") } },
    },
  },
}


-- A token count from its raw JSON text; nil for anything but a plain, believable integer (null, strings, signs, fractions).
local function count(raw)
  if raw and #raw <= COUNT_DIGITS_MAX and find(raw, COUNT) then
    return tonumber(raw)
  end
end


-- A part of a whole; nil where it is missing or cannot be one.
local function part(raw, whole)
  local value = count(raw)
  return value and value <= whole and value or nil
end


-- prompt, completion, cached?, reasoning? from a usage record; nil where the record does not hold up.
-- `prompt` counts all prompt tokens: Anthropic's input_tokens leaves out those read from or written to its cache.
local function usage_of(endpoint, record)
  local prompt, completion = count(record.prompt), count(record.completion)
  if endpoint == "messages" then
    prompt = prompt and prompt + (count(record.cached) or 0) + (count(record.created) or 0)
  elseif endpoint == "embeddings" and record.completion == nil then
    completion = 0
  end
  if not completion or not (prompt or endpoint == "messages") then
    return nil
  end
  return prompt, completion, prompt and part(record.cached, prompt), part(record.reasoning, completion)
end


-- Endpoint of a path, for routes without token-quota (guard off).
local PATHS = {
  { "/chat/completions$", "chat" },
  { "/completions$", "completions" },
  { "/embeddings$", "embeddings" },
  { "/responses$", "responses" },
  { "/messages$", "messages" },
}

local function endpoint_of(path)
  for i = 1, #PATHS do
    if find(path, PATHS[i][1]) then
      return PATHS[i][2]
    end
  end
end


return { BODY = BODY, STREAM = STREAM, usage_of = usage_of, endpoint_of = endpoint_of }
