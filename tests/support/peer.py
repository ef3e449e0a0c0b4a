# SPDX-License-Identifier: Apache-2.0
"""What PyTorch and MONAI make of the same network and image: the reference of the peer tests."""

import numpy as np
import torch
from monai.inferers import sliding_window_inference


def sliding_window(module, volume, tile, overlap, blend, axes="xyz"):
    """Return MONAI's result for an image [x, y, z] whose axes point to R, A and S.

    Several images [channel, x, y, z] are the channels of the network's input.
    """
    order = (0, 1, 2) if axes == "xyz" else (2, 1, 0)
    images = volume if np.ndim(volume) == 4 else np.asarray(volume)[None]
    channels = np.stack([np.transpose(image, order) for image in images])
    with torch.no_grad():
        result = sliding_window_inference(
            torch.from_numpy(channels)[None].float(),
            [tile[a] for a in order],
            sw_batch_size=4,
            predictor=module,
            overlap=overlap,
            mode=blend,
        )
    return np.transpose(result[0, 0].numpy(), order)
