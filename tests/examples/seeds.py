"""The examples of LMDeploy's documents, word for word but for the name of the package.

User code in this shape has to run as it stands: that is the engine's promise.
"""

POSE = "https://raw.githubusercontent.com/open-mmlab/mmdeploy/main/demo/resources/human-pose.jpg"
PHOTO = "https://example.com/photo.jpg"

DEFAULTS = """
from vlmflow_engine.vl import pipeline, load_image_from_url
from vlmflow_engine import TurbomindEngineConfig, ChatTemplateConfig

pipe = pipeline('liuhaotian/llava-v1.6-vicuna-7b',
    backend_config=TurbomindEngineConfig(session_len=8192),
    chat_template_config=ChatTemplateConfig(model_name='vicuna'))

image = load_image_from_url('https://raw.githubusercontent.com/open-mmlab/mmdeploy/main/demo/resources/human-pose.jpg')
response = pipe(('describe this image', [image]))
print(response)
"""

OPENAI = """
from vlmflow_engine.vl import pipeline
from vlmflow_engine import TurbomindEngineConfig, ChatTemplateConfig

pipe = pipeline('liuhaotian/llava-v1.6-vicuna-7b',
    backend_config=TurbomindEngineConfig(session_len=8192),
    chat_template_config=ChatTemplateConfig(model_name='vicuna'))

prompts = [
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "describe this image"},
            {"type": "image_url", "image_url": {"url": "https://raw.githubusercontent.com/open-mmlab/mmdeploy/main/demo/resources/human-pose.jpg"}}
        ]
    }
]


response = pipe(prompts)
print(response)
"""

STREAM = """
from vlmflow_engine.vl import pipeline
from vlmflow_engine import  GenerationConfig, TurbomindEngineConfig, ChatTemplateConfig

backend_config = TurbomindEngineConfig(session_len=8192)
gen_config = GenerationConfig(top_p=0.8,
                              top_k=40,
                              temperature=0.8,
                              max_new_tokens=1024)
chat_template_config=ChatTemplateConfig(model_name='vicuna')
pipe = pipeline('liuhaotian/llava-v1.6-vicuna-7b',
                backend_config=backend_config,
                chat_template_config=chat_template_config)
prompts = [
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "describe this image"},
            {"type": "image_url", "image_url": {"url": "https://raw.githubusercontent.com/open-mmlab/mmdeploy/main/demo/resources/human-pose.jpg"}}
        ]
    }
]

for item in pipe.stream_infer(prompts, gen_config=gen_config):
    print(item.text, end='', flush=True)
"""

SINGLE_IMAGE = """
from vlmflow_engine import pipeline, TurbomindEngineConfig
from vlmflow_engine.vl import load_image
pipe = pipeline('OpenGVLab/InternVL2-8B',
backend_config=TurbomindEngineConfig(session_len=8192))
image = load_image('https://example.com/photo.jpg')
response = pipe(('Describe this image in detail', image))
print(response.text)
"""

CHAT = """
from vlmflow_engine import pipeline
from vlmflow_engine.vl import load_image
pipe = pipeline('OpenGVLab/InternVL2-8B')
image = load_image('photo.jpg')
# First turn with image
session = pipe.chat(('What is in this image?', image))
print(session.response.text)
# Follow-up question (same session)
session = pipe.chat('How many objects are there?', session=session)
print(session.response.text)
"""
