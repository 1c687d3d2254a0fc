"""How content is written to Redis: deflated with a dictionary of what items have in common, half the size of the JSON.

The first byte tells the way, so that a later release may add one and still read the others. Knows nothing of keys.
"""

import zlib

_PLAIN, _DEFLATED = b"\x00", b"\x01"
_WINDOW = -zlib.MAX_WBITS  # raw: no header, no checksum

# Belongs to _DEFLATED for ever: data written with it are read with it. The most frequent stand last.
_DICTIONARY = b"".join(
    (
        b'{"type":"reasoning","summary":[],"content":[{"type":"reasoning_text","text":"',
        b'{"type":"function_call_output","call_id":"call_","output":"","status":"completed"}',
        b'{"type":"function_call","call_id":"call_","name":"","arguments":"{}","status":"completed"}',
        b'{"model":"","temperature":0.7,"top_p":0.9,"max_output_tokens":1024,',
        b'"instructions":"You are a helpful assistant."',
        b',"truncation":"auto","background":true,"status":"completed","error":null,"completed_at":17,"usage":{',
        b'"input_tokens":,"input_tokens_details":{"cached_tokens":0},"output_tokens":,',
        b'"output_tokens_details":{"reasoning_tokens":0},"total_tokens":}}',
        b'{"type":"message","role":"developer","content":[{"type":"input_text","text":"',
        b'{"type":"message","role":"system","content":[{"type":"input_text","text":"',
        b'{"type":"message","status":"incomplete","role":"assistant","content":[{"type":"output_text","text":"',
        b'","annotations":[],"logprobs":[]}]}',
        b'{"type":"message","status":"completed","role":"assistant","content":[{"type":"output_text","text":"',
        b'","annotations":[],"logprobs":[]}]}',
        b'{"type":"message","role":"user","content":[{"type":"input_text","text":"',
    )
)


def pack(content: bytes) -> bytes:
    deflate = zlib.compressobj(wbits=_WINDOW, zdict=_DICTIONARY)
    packed = deflate.compress(content) + deflate.flush()
    return _DEFLATED + packed if len(packed) < len(content) else _PLAIN + content


def unpack(stored: bytes) -> bytes:
    way, rest = stored[:1], stored[1:]
    if way == _DEFLATED:
        return zlib.decompressobj(wbits=_WINDOW, zdict=_DICTIONARY).decompress(rest)
    if way == _PLAIN:
        return rest
    raise ValueError(f"content packed in way {way!r}, which this release does not know")
