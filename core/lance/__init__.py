"""The native Lance: configuration, two-expert decoder, vision, latents, packing, sampler, generation and loading.

Implements the public model of ByteDance Lance (Apache-2.0) from its specification. Parameter names are Lance's own, so
a state dict maps onto the modules one to one. ``tasks`` puts the parts together for all seven tasks. Only ``video``
writes files, and nothing here knows of the database.
"""
