"""Names that prompts are written with."""

# In a text: here stands the next image. Without it images stand where the model's family puts them.
IMAGE_TOKEN = "<IMAGE_TOKEN>"
