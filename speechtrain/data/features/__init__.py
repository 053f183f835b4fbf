"""From samples to features: spectra, their cache and store, augmentation."""
