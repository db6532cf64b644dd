"""FlexKV: serving engines reuse each other's key/value caches.

The cache itself is the native module `flexkv._native`; what is written in Python adapts it to
engines. This module imports neither, so that `import flexkv` is cheap and needs no engine.
"""
