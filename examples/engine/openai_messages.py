"""The same question in the message format of OpenAI. python openai_messages.py MODEL IMAGE_URL"""

import sys

from vlmflow_engine import ChatTemplateConfig, TurbomindEngineConfig
from vlmflow_engine.vl import pipeline

model, url = sys.argv[1:]

pipe = pipeline(
    model,
    backend_config=TurbomindEngineConfig(session_len=8192),
    chat_template_config=ChatTemplateConfig(model_name="vicuna"),
)

prompts = [
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "What colour is the shape at the centre?"},
            {"type": "image_url", "image_url": {"url": url}},
        ],
    }
]
response = pipe(prompts)
print(response)
