"""Keras 3 on TensorFlow, JAX or PyTorch, trained by `keras.Model.fit`.

`engine.start` chooses what Keras runs on, once a process; every other module here but `weights_file` imports Keras and comes after it.
"""
