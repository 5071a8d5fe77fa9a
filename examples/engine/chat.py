"""A conversation about an image; a session remembers it. python chat.py MODEL IMAGE"""

import sys

from vlmflow_engine import pipeline
from vlmflow_engine.vl import load_image

model, path = sys.argv[1:]

pipe = pipeline(model)
image = load_image(path)

session = pipe.chat(("How many shapes are there?", image))
print(session.response.text)

session = pipe.chat("What colour is the shape at the centre?", session=session)
print(session.response.text)

print(len(session.history), "turns")
