"""A trained classifier for TensorFlow Lite Micro: model, operators, memory, front end and an example in C++, tried in its interpreter."""
