"""Who carries a request out: drivers, workers that own a model, places in the queue, streams."""
