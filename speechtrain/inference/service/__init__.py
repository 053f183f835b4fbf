"""A trained model for other programs over HTTP and WebSocket: `service.py` has the models, `application.py` the routes."""
