"""Ask a running `hone serve`: python examples/serve_client.py http://127.0.0.1:8000/v1."""

import json
import os
import sys

from openai import OpenAI

client = OpenAI(base_url=sys.argv[1], api_key=os.environ.get("OPENAI_API_KEY", "none"))
model = client.models.list().data[0].id
print(f"model {model}")

# A text is continued; the pieces are printed as they come, whole characters only.
prompt = "고객은 모두 몇 명이야?\nSQL:"
pieces = client.completions.create(
    model=model, prompt=prompt, max_tokens=40, temperature=0, stream=True
)
for piece in pieces:
    print(piece.choices[0].text, end="", flush=True)
print()

# A conversation, whose answer follows a JSON schema.
schema = {
    "type": "object",
    "properties": {"city": {"enum": ["서울", "부산"]}, "count": {"type": "integer", "maximum": 9}},
    "required": ["city", "count"],
    "additionalProperties": False,
}
answer = client.chat.completions.create(
    model=model,
    messages=[{"role": "user", "content": "How many stores are there in Seoul?"}],
    max_completion_tokens=80,
    temperature=0,
    response_format={"type": "json_schema", "json_schema": {"name": "stores", "schema": schema}},
)
choice = answer.choices[0]
print(json.loads(choice.message.content) if choice.finish_reason == "stop" else choice)

# What hone has beyond OpenAI's fields goes into extra_body, under vLLM's names.
number = client.completions.create(
    model=model,
    prompt="전화번호:",
    max_tokens=20,
    seed=1,
    extra_body={"top_k": 20, "structured_outputs": {"regex": "[0-9]{3}-[0-9]{4}"}},
)
print(number.choices[0].text, number.usage.completion_tokens, "tokens")
