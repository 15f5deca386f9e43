"""Export of trained models: bundles, ONNX programs and parity checks."""
