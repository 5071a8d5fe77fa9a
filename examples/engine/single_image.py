"""One image, one question. python single_image.py MODEL IMAGE_URL"""

import sys

from vlmflow_engine import ChatTemplateConfig, TurbomindEngineConfig
from vlmflow_engine.vl import load_image_from_url, pipeline

model, url = sys.argv[1:]

pipe = pipeline(
    model,
    backend_config=TurbomindEngineConfig(session_len=8192),
    chat_template_config=ChatTemplateConfig(model_name="vicuna"),
)

image = load_image_from_url(url)
response = pipe(("What colour is the shape at the centre?", [image]))
print(response)
