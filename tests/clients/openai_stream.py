"""Streams one chat answer with the unmodified `openai` client: openai_stream.py BASE_URL MODEL QUESTION.

Prints one JSON object {"text", "completion_tokens", "finish_reason"}.
"""

import json
import sys

from openai import OpenAI

base_url, model, question = sys.argv[1:]
client = OpenAI(base_url=base_url, api_key="unused", max_retries=0, timeout=120)
assert model in [served.id for served in client.models.list()], "the model is not listed by /v1/models"

text, finish_reason, usage = "", None, None
stream = client.chat.completions.create(
    model=model,
    messages=[{"role": "user", "content": question}],
    max_tokens=24,
    temperature=0,
    stream=True,
    stream_options={"include_usage": True},
)
for chunk in stream:
    for choice in chunk.choices:
        text += choice.delta.content or ""
        finish_reason = choice.finish_reason or finish_reason
    usage = chunk.usage or usage
print(json.dumps({"text": text, "completion_tokens": usage.completion_tokens, "finish_reason": finish_reason}))
