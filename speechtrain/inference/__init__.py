"""Uses a trained model: finds it by name, loads it, transcribes, evaluates, aligns, exports and serves."""
