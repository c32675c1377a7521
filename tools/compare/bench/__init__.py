"""What `peers.py` is made of, one purpose a file. Nothing here knows which proxy is ours but `peer.py`."""
