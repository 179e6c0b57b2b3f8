"""Small sets of pictures with ground truth, made on the spot."""

import json

import cv2
import numpy as np


def write_picture(path, width_px=64, height_px=48, seed=0):
    """A picture of random levels; its format is that of the file's name."""
    levels = np.random.default_rng(seed).integers(0, 256, (height_px, width_px, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix, levels)[1].tobytes())
    return path


def coco(count=3, names=("person", "car")):
    """A sound COCO data set of `count` pictures of 64 x 48, each with one box of each category."""
    return {
        "images": [{"id": 10 * k, "file_name": f"{k}.png", "width": 64, "height": 48} for k in range(1, count + 1)],
        "annotations": [
            {
                "id": 100 * k + c,
                "image_id": 10 * k,
                "category_id": 7 * c,
                "bbox": [4, 5, 30, 20],
                "iscrowd": 0,
                "area": 600,
            }
            for k in range(1, count + 1)
            for c in range(1, len(names) + 1)
        ],
        "categories": [{"id": 7 * c, "name": name} for c, name in enumerate(names, start=1)],
    }


def write_coco(folder, content, pictures="images"):
    """The JSON file in `folder`, its pictures (64 x 48) in the subfolder `pictures`."""
    for k, image in enumerate(content["images"]):
        write_picture(folder / pictures / image["file_name"], seed=k)
    path = folder / "instances.json"
    path.write_text(json.dumps(content))
    return path


def voc_object(name="dog", box=(2, 3, 40, 30), difficult=0):
    corners = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    return f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{corners}</bndbox></object>"


def write_voc(folder, objects):
    """A VOC tree of 64 x 48 pictures: `objects` maps a stem to the XML of its objects."""
    for k, (stem, inside) in enumerate(objects.items()):
        write_picture(folder / "JPEGImages" / f"{stem}.jpg", seed=k)
        write_annotation(folder / "Annotations" / f"{stem}.xml", inside, f"{stem}.jpg")
    return folder


def write_annotation(path, inside, file_name):
    path.parent.mkdir(parents=True, exist_ok=True)
    size = "<size><width>64</width><height>48</height><depth>3</depth></size>"
    path.write_text(f"<annotation><filename>{file_name}</filename>{size}{inside}</annotation>")
