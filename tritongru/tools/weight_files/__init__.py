"""Weights and layers in files: Keras, torch and safetensors, both ways; never by pickle."""
