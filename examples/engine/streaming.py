"""An answer piece by piece, while it grows. python streaming.py MODEL IMAGE_URL"""

import sys

from vlmflow_engine import GenerationConfig, TurbomindEngineConfig
from vlmflow_engine.vl import pipeline

model, url = sys.argv[1:]

pipe = pipeline(model, backend_config=TurbomindEngineConfig(session_len=8192))
gen_config = GenerationConfig(top_p=0.8, top_k=40, temperature=0.8, max_new_tokens=1024)
prompts = [
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "Describe this image."},
            {"type": "image_url", "image_url": {"url": url}},
        ],
    }
]
for item in pipe.stream_infer(prompts, gen_config=gen_config):
    print(item.text, end="", flush=True)
