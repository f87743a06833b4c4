"""Draw products, their instances and their defects, whole batches at once in torch."""
