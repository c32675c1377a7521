"""For vLLM on a machine with fewer cores than engines have threads; Python runs this file because engines.sh puts its folder
into PYTHONPATH.

Workers and engine cores wait for each other by calling sched_yield() for a second on end. With two engines on two cores,
Linux 6.18 was seen to leave other threads without a CPU for seconds, the engines' own ones too: a hand-over of 50 ms took
3 s and more. Here they sleep.
"""

import os
import time

os.sched_yield = lambda: time.sleep(0.0002)
