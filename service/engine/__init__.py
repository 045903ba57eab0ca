"""Batching engines: a bounded queue, worker threads around the device, results delivered to the event loop."""
