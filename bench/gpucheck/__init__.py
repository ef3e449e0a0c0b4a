# SPDX-License-Identifier: Apache-2.0
"""What bench/gpu_check is made of; the standard library is all it needs."""
