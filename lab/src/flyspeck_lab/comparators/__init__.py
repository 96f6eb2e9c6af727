"""The detectors beside which the papers put their own, as a plugin of flyspeck."""

from __future__ import annotations

from flyspeck import register_backbone, register_detector


def register() -> None:
    """Adds `free_anchor`, `libra_rcnn`, `grid_rcnn`, `rfb_net`, `pelee`, `retinaface`, `s3fd`, `pyramidbox`, `ssd_fpn`, `rfcn`,
    `rfcn_fpn` and the backbone `peleenet`.
    """
    from flyspeck.models.assigners.build import NAMES as ASSIGNERS
    from flyspeck.models.batch_decoding import register_onnx
    from flyspeck.models.heads.faster_rcnn import FasterRCNNHead, faster_rcnn
    from flyspeck.models.heads.retinanet import RetinaNetHead, retinanet
    from flyspeck.models.heads.ssd import SSDHead, SSDOptions
    from flyspeck_lab.comparators import pelee, pyramidbox, retinaface, rfb_net, rfcn, s3fd, ssd_fpn
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
    for name, module, options in (
        ("retinaface", retinaface, retinaface.RetinaFaceOptions),
        ("s3fd", s3fd, s3fd.S3FDOptions),
        ("pyramidbox", pyramidbox, pyramidbox.PyramidBoxOptions),
    ):
        register_detector(
            name,
            getattr(module, name),
            find_configuration=module.find_configuration,
            like=None if name == "retinaface" else "ssd",
            options=options,
        )
    register_detector(
        "ssd_fpn", ssd_fpn.ssd_fpn, passes_to=(SSDHead,), levels="3-7", classes=15, options=ssd_fpn.SSDFPNOptions
    )
    register_detector(
        "rfcn",
        rfcn.rfcn,
        passes_to=(rfcn.voting_head,),
        classes=80,
        assigners=ASSIGNERS,
        find_configuration=rfcn.find_configuration,
        options=rfcn.RFCNPlainOptions,
    )
    register_detector(
        "rfcn_fpn",
        rfcn.rfcn_fpn,
        passes_to=(rfcn.voting_head,),
        classes=15,
        assigners=ASSIGNERS,
        like="faster_rcnn",
        options=rfcn.RFCNPyramidOptions,
    )
