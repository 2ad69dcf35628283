"""Where the images of a published row come from: a data set's name in, what a person with the account does out.

Nothing here downloads: ImageNet wants its terms accepted by a person, and LAION-COCO takes days and a fast resolver.
"""

# valeoai/Franca dataset_prep.md@24f8c60: every option that shapes the data as it stands there, without its reports to
# wandb; `incremental`, the default, says that it goes on after a stop. img2dataset's own recipe differs in the size,
# 256, and a comment in Franca's configuration says "already resized to 256x256" (vitl14.yaml@24f8c60). The document is
# the one that says how to make the data, so its 512 is taken; of an image of 256 px, a crop of 224 px would be upscaled
# wherever its box is below 0.77 of the area.
IMAGE_PX = 512
PARQUET = "https://huggingface.co/datasets/laion/laion-coco/resolve/main"
LAION = """\
LAION-COCO's links are in 128 parquet files. Fetch them and their images (img2dataset is a package of its own):

    mkdir -p {root}/links
    for i in $(seq -f %05g 0 127); do
      wget -c -P {root}/links {parquet}/part-$i-2256f782-126f-4dc6-b9c6-e6757637749d-c000.snappy.parquet
    done
    img2dataset --url_list {root}/links --input_format parquet --url_col URL --caption_col TEXT \\
      --output_format webdataset --output_folder {root}/train --processes_count 16 --thread_count 64 \\
      --image_size {px} --resize_only_if_bigger=True --resize_mode=keep_ratio --skip_reencode=True \\
      --save_additional_columns '["similarity","hash","punsafe","pwatermark","top_caption","all_captions",\
"all_similarities"]' --incremental_mode incremental

Sources disagree on the images' shorter side: 512 px in the document that says how to make the data, which is taken
here; 256 px in a comment of the published configuration and in img2dataset's own recipe. When the shards are there:

    franca data prepare laion600m --root {root}"""

IMAGENET = {
    "imagenet1k": """\
ILSVRC 2012 is behind an account: https://image-net.org/download-images.php. Unpack ILSVRC2012_img_train.tar and the
archives in it into {root}/train/<class>/, and ILSVRC2012_img_val.tar into {root}/val/<class>/. Or leave the latter flat
in {root}/val/ and write {root}/val/labels.txt, a line `<image> <class>` for each.""",
    "imagenet21k": """\
ImageNet-21K, winter 2021, is behind an account: https://image-net.org/download-images.php. Unpack winter21_whole.tar.gz
once into {root}: it holds a tar archive per class, winter21_whole/n01440764.tar, which stay packed.""",
    "folder": "Put image files into {root}, in folders of any depth.",
}


def describe_source(name: str, *, root: str) -> str:
    """How a data set is fetched into `root`, to read."""
    if name == "laion600m":
        return LAION.format(root=root, parquet=PARQUET, px=IMAGE_PX)
    return IMAGENET[name].format(root=root)
