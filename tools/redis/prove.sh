#!/usr/bin/env bash
# The tests against a real Redis, which is installed if it is not there: here a machine without one fails them.
set -euo pipefail
cd "$(dirname "$0")/../.."

tools/redis/install.sh
PDRELAY_TEST_REDIS=1 cargo test --locked --test suite -- multiturn::real_redis multiturn::processes
