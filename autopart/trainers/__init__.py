"""A plan in the trainers that people use: Hugging Face's Trainer and accelerate."""
