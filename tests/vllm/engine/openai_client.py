"""OpenAI's Python client against a base URL: requests as JSON on stdin, texts and token counts as JSON on stdout."""

import json
import sys

import openai

client = openai.OpenAI(base_url=sys.argv[1], api_key="none", max_retries=0)
answers = []
for item in json.load(sys.stdin):
    more = {"model": "tiny", "max_tokens": 16, "temperature": 0}
    if item["stream"]:
        more.update(stream=True, stream_options={"include_usage": True})
    if item["chat"]:
        reply = client.chat.completions.create(messages=[{"role": "user", "content": item["prompt"]}], **more)
    else:
        reply = client.completions.create(prompt=item["prompt"], **more)
    text, usage = "", None
    for part in reply if item["stream"] else [reply]:
        usage = part.usage or usage
        for choice in part.choices:
            if not item["chat"]:
                text += choice.text
            elif item["stream"]:
                text += choice.delta.content or ""
            else:
                text += choice.message.content
    answers.append({"text": text, "usage": usage.model_dump()})
json.dump(answers, sys.stdout)
