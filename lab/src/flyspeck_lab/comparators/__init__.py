"""The detectors beside which the papers put their own, as a plugin of flyspeck."""

from __future__ import annotations

from flyspeck import register_backbone, register_detector


def register() -> None:
    """Adds `free_anchor`, `libra_rcnn`, `grid_rcnn`, `rfb_net`, `pelee`, `retinaface` and the backbone `peleenet`."""
    from flyspeck.models.assigners.build import NAMES as ASSIGNERS
    from flyspeck.models.batch_decoding import register_onnx
    from flyspeck.models.heads.faster_rcnn import FasterRCNNHead, faster_rcnn
    from flyspeck.models.heads.retinanet import RetinaNetHead, retinanet
    from flyspeck.models.heads.ssd import SSDHead, SSDOptions
    from flyspeck_lab.comparators import pelee, retinaface, rfb_net
    from flyspeck_lab.comparators.free_anchor import FreeAnchorOptions, free_anchor
    from flyspeck_lab.comparators.grid_rcnn import GridRCNNHead, GridRCNNOptions, grid_rcnn
    from flyspeck_lab.comparators.libra_rcnn import LibraRCNNOptions, attend_onnx, libra_rcnn

    register_detector("free_anchor", free_anchor, passes_to=(retinanet, RetinaNetHead), options=FreeAnchorOptions)
    register_detector(
        "libra_rcnn",
        libra_rcnn,
        passes_to=(faster_rcnn, FasterRCNNHead),
        assigners=ASSIGNERS,
        like="faster_rcnn",
        options=LibraRCNNOptions,
    )
    register_onnx("flyspeck_lab::attend_halved", attend_onnx)
    register_detector("grid_rcnn", grid_rcnn, passes_to=(GridRCNNHead,), like="faster_rcnn", options=GridRCNNOptions)
    register_backbone("peleenet", pelee.peleenet)
    for name, module, like in (("rfb_net", rfb_net, "ssd"), ("pelee", pelee, None)):
        register_detector(
            name,
            getattr(module, name),
            passes_to=(SSDHead,),
            classes=80,
            find_configuration=module.find_configuration,
            like=like,
            options=SSDOptions,
        )
    register_detector(
        "retinaface",
        retinaface.retinaface,
        find_configuration=retinaface.find_configuration,
        options=retinaface.RetinaFaceOptions,
    )
