"""One example of every verb, as its help shows it. A test parses each."""

from __future__ import annotations

EXAMPLES = {
    "flyspeck alpha": "flyspeck alpha train.json --strides 4,8,16,32,64 --size 512x640",
    "flyspeck benchmark": "flyspeck benchmark runs/first --engines eager,onnx,openvino --out speed",
    "flyspeck card": 'flyspeck card runs/first --out models/first --trained-on "my images" --licence "CC BY 4.0"',
    "flyspeck data convert": "flyspeck data convert labels --to coco --out train.json",
    "flyspeck data errors": "flyspeck data errors runs/first val.json --to label-studio,cvat --out suspects",
    "flyspeck data inspect": "flyspeck data inspect train.json --out seen --draw 12",
    "flyspeck data scale-match": "flyspeck data scale-match coco.json --target train.json --match msm --out matched",
    "flyspeck data scenes": "flyspeck data scenes --out scenes --num-images 24 --size 256x320",
    "flyspeck data shrink": "flyspeck data shrink train.json --by 2 --out half",
    "flyspeck data split": "flyspeck data split train.json --also val.json --shares train=0.8,val=0.2 --out split",
    "flyspeck data tile": "flyspeck data tile train.json --tile 512x640 --overlap 50 --out tiles",
    "flyspeck demo": "flyspeck demo --out flyspeck-demo",
    "flyspeck distill": "flyspeck distill student.yaml --teacher runs/teacher --out runs/student",
    "flyspeck dpnet fit": "flyspeck dpnet fit runs/dpnet --set dynamic.predictor.slack=1.0",
    "flyspeck dpnet labels": "flyspeck dpnet labels runs/dpnet --part val",
    "flyspeck eval": "flyspeck eval --model runs/first --data test.json --baselines --html test.html",
    "flyspeck explain": "flyspeck explain runs/first --gt val.json --out seen --draw 6",
    "flyspeck export": "flyspeck export runs/first --to onnx --out first.onnx",
    "flyspeck models": "flyspeck models bh_resnet --recount",
    "flyspeck predict": "flyspeck predict photos --model runs/first --out found --to coco,csv --score 0.3",
    "flyspeck pretrain": "flyspeck pretrain bh_resnet50 cifar-100-python --epochs 60 --out runs/pretrained",
    "flyspeck profile": "flyspeck profile resnet50 bh_resnet50 --size 512x640 --convention mmcv",
    "flyspeck report": "flyspeck report runs/first runs/second --out report.html --draw 40",
    "flyspeck schema": "flyspeck schema --to json --out recipe.schema.json",
    "flyspeck train": "flyspeck train recipe.yaml --out runs/first --set train.epochs=3",
    "flyspeck tune alpha": "flyspeck tune alpha recipe.yaml --grid 0,0.5,1 --set train.epochs=2",
    "flyspeck tune look": "flyspeck tune look runs/first --lost 0.02",
}
