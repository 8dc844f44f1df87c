"""Request bodies as bytes: what parsers read differently, what costs more than it looks, what forges another's fields.

Built as text, not from Python values: most of these no JSON library would write.
"""

from __future__ import annotations

import json
from random import Random

MODEL = "deepseek-r1"

# Values as they stand in the body. Whatever parser reads them, none may be metered as less than is generated.
ODD_VALUES = (
    "NaN", "Infinity", "-Infinity", "-0", "-0.0", "0", "1", "-1", "01", "+1", "1.", ".5", "1.0", "1e0", "1e2", "1E400",
    "1e-400", "0x10", "1_000", "2147483647", "2147483648", "4294967296", "9007199254740993", "18446744073709551616",
    "9" * 400, "-" + "9" * 400, "true", "false", "null", "True", "undefined", '""', '"5"', '"1e2"', '"true"',
    '"\\ud800"', '"\\udc00\\ud800"', '"\\u0000"', '"\\x41"', '"a\tb"', "'5'", "[]", "{}", "[1]", '["a"]', "[[]]",
    '{"a":1,"a":2}', "[" * 70 + "]" * 70, '{"a":' * 70 + "1" + "}" * 70, "[null]", '"' + "\\u0041" * 300 + '"',
)  # fmt: skip

# Keys that are, or look like, the one that is metered.
LOOKALIKES = {
    "max_tokens": ("max_token\\u0073", "MAX_TOKENS", "Max_Tokens", "max_tokens ", "max_tokens\\u0000", "ｍax_tokens"),
    "model": ("m\\u006fdel", "MODEL", "model\\u200b", "mode\\u006c", "mo\\u0064el"),
    "n": ("\\u006e", "N", "ｎ", "n\\u0000"),
    "stream": ("strea\\u006d", "STREAM", "stream "),
    "messages": ("me\\u0073sages", "Messages", "messages\\u0000"),
    "cache_salt": ("cache\\u005fsalt", "CACHE_SALT", "cache_salt "),
}

FORGED = {
    "request_id": '"forged"', "session_id": '"forged"', "priority": "-1000", "cache_salt": '"another tenant\'s"',
    "data_parallel_rank": "0", "kv_transfer_params": '{"prompt_token_ids":[1,2,3]}', "vllm_xargs": '{"a":1}',
    "stream_interval": "1000", "logits_processors": '["os.system"]', "chat_template": '"{{ messages * 1000 }}"',
    "prompt_embeds": '"AAAA"', "use_beam_search": "true", "mm_processor_kwargs": "{}", "background": "true",
    "previous_response_id": '"resp_1"', "store": "true", "echo": "true", "best_of": "3", "ignore_eos": "true",
    "min_tokens": "60", "truncate_prompt_tokens": "1", "prompt_logprobs": "1", "logprobs": "true", "_method": '"x"',
    "user": '"other"', "usage": '{"prompt_tokens":0}', "tenant": '"victim"', "include_usage": "false",
    "add_generation_prompt": "false", "continue_final_message": "true", "return_token_ids": "true",
    "response_format": '{"type":"json_object"}', "stop": '["a"]', "skip_special_tokens": "false",
}  # fmt: skip

STREAM_OPTIONS = (
    "null", "{}", "[]", '"x"', '{"include_usage":false}', '{"include_usage":true}', '{"include_usage":"true"}',
    '{"include_usage":null}', '{"continuous_usage_stats":false}', '{"include_usage":false,"include_usage":true}',
    '{"include_usage":true,"include\\u005fusage":false}', '{"include_usage":1}', '{"x":{"y":[]}}',
)  # fmt: skip

CONTENTS = (
    '"hi"', '""', "null", "5", "[]", '[""]', '["a","b"]', '[{"type":"text","text":"a"}]', '{"text":"a"}',
    '[{"type":"image_url","image_url":{"url":"data:image/png;base64,AAAA"}}]',
    '[{"type":"image_url","image_url":{"url":"http://127.0.0.1:1/huge.png"},"text":"' + "long " * 50 + '"}]',
    '[{"type":"input_audio","input_audio":{"data":"AAAA","format":"wav"}}]', '[{"type":"video_url","video_url":{}}]',
    '[{"type":"text","type":"image_url","text":"a"}]', '[{"type":"text","text":"a","text":"' + "b " * 200 + '"}]',
    '[{"text":"no type"}]', '[{"type":"file","file":{"file_id":"x"}}]', '[{"type":"tool_result","content":"x"}]',
    '"' + "\\u0041" * 200 + '"', '"' + "\\ud83d\\ude00" * 60 + '"', '"\\ud800"', '"\\u0000\\u001f"', '"日本語"',
    '[[{"type":"text","text":"nested"}]]', '[{"type":["text"],"text":"a"}]', '[{"type":"text","text":["a"]}]',
)  # fmt: skip

TOOLS = (
    "[]", "{}", "null", '[{"type":"function","function":{"name":"f","parameters":{"type":"object"}}}]',
    '[{"type":"function","function":{"name":"f","parameters":' + '{"properties":' * 20 + "{}" + "}" * 20 + "}}]",
    '[{"type":"function","function":{"name":"f","description":"' + '\\"\\n' * 100 + '"}}]', '[{"type":"mcp"}]',
    '[{"type":"web_search"}]', "[null]", '[{"type":"function","function":{"name":"f","parameters":{"日本":"語"}}}]',
)  # fmt: skip

PROMPTS = (
    '"hi"', '["a","b","c"]', "[1,2,3]", "[[1,2],[3]]", "[[],[1]]", "[]", "[[]]", '["a",1]', "[-1]", "[1.5]", "[1e3]",
    "[99999999999999999999]", "[" + "7," * 3000 + "7]", "null", "5", "{}", '""', '["",""]', "[true]",
    "[" + '"a",' * 100 + '"a"]',
)  # fmt: skip

ENDPOINTS = {
    "/v1/chat/completions": ("messages", '[{"role":"user","content":CONTENT}]'),
    "/v1/completions": ("prompt", None),
    "/v1/embeddings": ("input", None),
    "/v1/responses": ("input", '[{"role":"user","content":CONTENT}]'),
    "/v1/messages": ("messages", '[{"role":"user","content":CONTENT}]'),
}


def plain(path: str, content: str = '"How many?"') -> list[tuple[str, str]]:
    """A decent request's members, keys and values as they stand in the body."""
    field, shape = ENDPOINTS[path]
    value = content if shape is None else shape.replace("CONTENT", content)
    limit = "max_output_tokens" if path.endswith("responses") else "max_tokens"
    members = [("model", f'"{MODEL}"'), (field, value)]
    return members if path.endswith("embeddings") else [*members, (limit, "16")]


def write(members: list[tuple[str, str]]) -> bytes:
    return ("{" + ",".join(f'"{key}":{value}' for key, value in members) + "}").encode("utf-8", "surrogatepass")


def body(choose: Random, path: str) -> bytes:
    """One body for ``path``, usually wrong in one to three ways, now and then in none."""
    prompts = ENDPOINTS[path][1] is None
    members = plain(path, choose.choice(PROMPTS if prompts else CONTENTS) if choose.random() < 0.35 else '"How many?"')
    for _ in range(choose.choice((0, 1, 1, 1, 2, 3))):
        _spoil(choose, path, members)
    data = write(members)
    return _spoil_bytes(choose, data) if choose.random() < 0.25 else data


def _spoil(choose: Random, path: str, members: list[tuple[str, str]]) -> None:
    at = choose.randrange(len(members) + 1)
    match choose.randrange(9):
        case 0:  # a value that parsers read differently
            name = choose.choice(
                ("max_tokens", "max_completion_tokens", "max_output_tokens", "n", "best_of", "stream", "model",
                 "temperature", "seed", "messages", "prompt", "input", "tools", "logprobs", "metadata", "echo")
            )  # fmt: skip
            members[:] = [member for member in members if member[0] != name]
            members.insert(min(at, len(members)), (name, choose.choice(ODD_VALUES)))
        case 1:  # a field twice, the second one dearer
            members.insert(at, choose.choice(members))
        case 2:
            members.insert(at, choose.choice((("max_tokens", "4000"), ("n", "3"), ("model", '"free"'))))
        case 3:
            name = choose.choice(list(LOOKALIKES))
            value = {"max_tokens": "4000", "n": "4", "stream": "true"}.get(name, '"free"')
            members.insert(at, (choose.choice(LOOKALIKES[name]), value))
        case 4:
            name = choose.choice(list(FORGED))
            members.insert(at, (name, FORGED[name]))
        case 5:
            members.insert(at, ("stream", choose.choice(("true", "true", '"true"', "1"))))
            members.insert(at, ("stream_options", choose.choice(STREAM_OPTIONS)))
        case 6:
            members.insert(at, ("tools", choose.choice(TOOLS)))
        case 7:
            members.insert(at, ("n", choose.choice(("1", "2", "4", "128", "129", "100000"))))
        case 8:
            name = choose.choice(("role", "name", "tool_calls", "content", "reasoning_content", "weight", "x" * 300))
            value = choose.choice((*ODD_VALUES, '"user"', '[{"id":"1","type":"function","function":{"name":"f"}}]'))
            message = f'[{{"role":"user","content":"a","{name}":{value}}}]'
            field = ENDPOINTS[path][0]
            members[:] = [(key, message if key == field else old) for key, old in members]


def _spoil_bytes(choose: Random, data: bytes) -> bytes:
    at = choose.randrange(len(data))
    match choose.randrange(14):
        case 0:
            return b"\xef\xbb\xbf" + data
        case 1:
            return data.decode("utf-8", "replace").encode(choose.choice(("utf-16", "utf-16-le", "utf-32", "utf-7")))
        case 2:
            return data + choose.choice((b"x", b"}", b"\0", b"\n\n", b" ", b"{}", b",", b"//", data))
        case 3:
            return data[:at]
        case 4:
            return data[:at] + bytes([choose.randrange(256)]) + data[at + 1 :]
        case 5:
            return b"/* comment */" + data
        case 6:
            return data.replace(b",", b", // comment\n", 1)
        case 7:
            return data[:-1] + b",}"
        case 8:
            return data[:at] + choose.choice((b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80")) + data[at:]
        case 9:
            return b"[" + data + b"]"
        case 10:
            return choose.choice((b"\0", b"\x1e", b"\n\n \t", b"\x0b", b"\xc2\xa0", b")]}',\n")) + data
        case 11:
            return data.replace(b'"', b"'")
        case 12:
            return json.dumps(data.decode("utf-8", "replace")).encode()
        case _:
            return data[:at] + data[at + choose.randrange(1, 5) :]
