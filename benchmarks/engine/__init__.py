"""The service around the model: overhead, overload, memory, interference."""
