"""A plan in the trainers that people use: Hugging Face Trainer, accelerate and Lightning."""
