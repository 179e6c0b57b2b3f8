// ONNX Runtime by its C API, loaded when it is asked for.
