"""Many prompts at once: pairs, and several images in one. python batch.py MODEL IMAGE IMAGE ..."""

import sys

from vlmflow_engine import GenerationConfig, TurbomindEngineConfig, pipeline
from vlmflow_engine.vl import load_image

model, *paths = sys.argv[1:]

pipe = pipeline(model, backend_config=TurbomindEngineConfig(session_len=8192))
images = [load_image(path) for path in paths]

prompts = [("How many shapes are there?", image) for image in images]
for response in pipe(prompts, gen_config=GenerationConfig(max_new_tokens=64)):
    print(response.index, response.text)

response = pipe(("Describe the scene.", images))
print(response.input_token_len, response.text)
