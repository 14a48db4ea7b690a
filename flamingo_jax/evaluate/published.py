"""Published few-shot scores, to draw beside one's own.

Tables 11 and 12 of https://arxiv.org/abs/2308.01390 (version 2): OpenFlamingo's five models, each
the mean ± the population standard deviation over three seeds, and Flamingo's as reprinted there.
CIDEr × 100, VQA accuracy and ROC AUC in per cent; VQAv2 and VizWiz on test-dev.
"""

from typing import NamedTuple

SHOTS = (0, 4, 8, 16, 32)


class Published(NamedTuple):
    """A printed score; `deviation` is None where none is printed."""

    mean: float
    deviation: float | None


_TABLE = """
coco          Flamingo-3B random         73         85       90.6       95.4         99
coco          Flamingo-9B random       79.4       93.1         99      102.2      106.3
coco          OF-3B       random   74.9±0.2   77.3±0.3   85.9±0.6   89.8±0.2     93±0.6
coco          OF-3B-I     random   74.4±0.6   82.7±0.7   87.8±0.5   91.9±0.3   94.8±0.3
coco          OF-4B       random   76.7±0.2   81.8±0.4   90.7±0.3   93.9±0.4   95.1±0.3
coco          OF-4B-I     random   81.2±0.3   85.8±0.5   94.8±0.2     98±0.3   99.2±0.3
coco          OF-9B       random   79.5±0.2     89±0.3   96.3±0.1   98.8±0.7   99.5±0.1
flickr30k     Flamingo-3B random       60.6         72       71.7       73.4       71.2
flickr30k     Flamingo-9B random       61.5       72.6       73.4       72.7       72.8
flickr30k     OF-3B       random     52.3±1   57.2±0.4   58.6±1.1   59.2±0.5   61.1±1.3
flickr30k     OF-3B-I     random   51.2±0.2   59.1±0.3   60.7±0.6     63±0.4   64.5±1.3
flickr30k     OF-4B       random   53.6±0.9   60.7±1.2   55.9±1.3   56.8±0.5   56.9±0.7
flickr30k     OF-4B-I     random   55.6±1.3   61.2±0.5       59±1     54.8±1     53±0.5
flickr30k     OF-9B       random     59.5±1   65.8±0.6     62.9±1     62.8±1   61.3±0.7
vqav2         Flamingo-3B random       49.2       53.2       55.4       56.7       57.1
vqav2         Flamingo-9B random       51.8       56.3         58       59.4       60.4
vqav2         OF-3B       random     44.6±0     45.8±0     46.2±0     46.6±0     47±0.1
vqav2         OF-3B-I     random   44.1±0.1   45.7±0.1   45.9±0.1     45.8±0   44.8±0.1
vqav2         OF-4B       random   45.1±0.1       49±0     48.3±0   45.5±0.1     43±0.2
vqav2         OF-4B-I     random     46.9±0       49±0     47.4±0   45.1±0.1     47.3±0
vqav2         OF-9B       random   52.7±0.2     54.8±0     54.8±0     54.3±0   53.3±0.1
okvqa         Flamingo-3B random       41.2       43.3       44.6       45.6       45.9
okvqa         Flamingo-9B random       44.7       49.3         50       50.8         51
okvqa         OF-3B       random   28.2±0.2   30.3±0.5   31.1±0.3   30.9±0.3     31±0.1
okvqa         OF-3B-I     random   28.7±0.1   30.6±0.2   31.5±0.3   30.7±0.3   30.6±0.1
okvqa         OF-4B       random   30.7±0.1     35.1±0   33.9±0.1   28.5±0.2   26.4±0.2
okvqa         OF-4B-I     random   31.7±0.1     34.6±0   33.7±0.2   31.3±0.1   34.7±0.3
okvqa         OF-9B       random   37.8±0.2   40.1±0.1   41.1±0.2   42.7±0.2     42.4±0
textvqa       Flamingo-3B random       30.1       32.7       32.4       31.8       30.6
textvqa       Flamingo-9B random       31.8       33.6       33.6       33.5       32.6
textvqa       OF-3B       random   24.2±0.2     27±0.3   27.7±0.1     28±0.2   28.3±0.2
textvqa       OF-3B-I     random   23.1±0.2   28.1±0.4   29.1±0.1   29.1±0.1   28.5±0.1
textvqa       OF-4B       random     21±0.3     25.9±0   21.3±0.2   18.2±0.4   14.1±0.2
textvqa       OF-4B-I     random   21.1±0.4   27.2±0.3   25.1±0.2   23.2±0.1   23.2±0.2
textvqa       OF-9B       random   24.2±0.5   28.2±0.4   29.1±0.1   27.3±0.1   23.8±0.2
vizwiz        Flamingo-3B random       28.9         34       38.4       43.3       45.5
vizwiz        Flamingo-9B random       28.8       34.9       39.4         43         44
vizwiz        OF-3B       random   23.7±0.5     27±0.3   32.1±0.7   36.1±0.3   39.8±0.1
vizwiz        OF-3B-I     random   23.4±0.3   27.7±0.1   32.1±0.6   35.3±0.1   39.3±0.4
vizwiz        OF-4B       random   18.8±0.1   26.6±0.5   28.8±0.4   24.6±0.2   23.1±1.1
vizwiz        OF-4B-I     random   21.5±0.2   26.5±0.4   29.1±0.2     31±0.6   31.3±0.2
vizwiz        OF-9B       random   27.5±0.2   34.1±0.7   38.5±0.1   42.5±0.4     44±0.5
hateful_memes Flamingo-3B random       53.7       53.6       54.7       55.3       56.3
hateful_memes Flamingo-9B random         57       62.7       63.9       64.5       63.5
hateful_memes OF-3B       random   51.2±2.5   50.6±0.8     52±1.1   48.5±0.7   50.2±1.8
hateful_memes OF-3B-I     random   50.1±2.2   49.5±0.6   50.7±1.8     48.7±1   47.8±2.2
hateful_memes OF-4B       random   52.3±2.3   51.5±1.4   55.2±0.8   54.5±1.3   52.2±1.2
hateful_memes OF-4B-I     random   53.1±2.2   54.9±1.1   58.5±0.3   56.9±1.5   54.9±1.1
hateful_memes OF-9B       random   51.6±1.8       54±2   54.7±2.8   53.9±3.1   53.8±2.1
coco          OF-3B       rices        81.6       91.3       97.4      102.2      105.5
coco          OF-3B-I     rices          79       90.5       96.8      101.1      104.1
coco          OF-4B       rices        75.9         89       96.6      102.4      105.1
coco          OF-4B-I     rices        79.5       92.7      101.6        106      107.8
coco          OF-9B       rices        76.8       93.1       99.8      105.6        109
flickr30k     OF-3B       rices          46         54       58.6         62       65.5
flickr30k     OF-3B-I     rices          45       53.9       58.6       61.5       64.6
flickr30k     OF-4B       rices        36.3       48.9       51.3       56.5       56.2
flickr30k     OF-4B-I     rices          43       53.6       53.4       56.4       56.6
flickr30k     OF-9B       rices        39.2       52.2       58.7       60.6         63
vqav2         OF-3B       rices        44.5       45.9         47         48       49.1
vqav2         OF-3B-I     rices          44       45.3       46.1       46.6       46.7
vqav2         OF-4B       rices        44.9         49       48.5       46.6       44.5
vqav2         OF-4B-I     rices        46.6       49.6       47.7       45.4       48.9
vqav2         OF-9B       rices          53       55.1         56       56.6       56.8
okvqa         OF-3B       rices        28.6         31       32.6       33.8       35.1
okvqa         OF-3B-I     rices        29.2       31.4       32.8       33.9       34.6
okvqa         OF-4B       rices          31       34.8       33.3       29.2       28.7
okvqa         OF-4B-I     rices          32       35.1       34.6       32.7       36.5
okvqa         OF-9B       rices        38.3         42       44.1       45.1       46.3
textvqa       OF-3B       rices        24.5       27.2         28       27.5       29.2
textvqa       OF-3B-I     rices          26       28.9       28.8       28.8         29
textvqa       OF-4B       rices        22.8       26.7       22.7       19.5      17.93
textvqa       OF-4B-I     rices        23.5       28.9       25.6         22         23
textvqa       OF-9B       rices        28.3       34.2       34.8       33.4       31.1
vizwiz        OF-3B       rices        32.1       37.3       41.7       44.8       45.8
vizwiz        OF-3B-I     rices        32.6         39       42.5       44.9       45.9
vizwiz        OF-4B       rices          28       37.4       35.7       31.5       27.3
vizwiz        OF-4B-I     rices        30.1       36.6         37       36.6       36.4
vizwiz        OF-9B       rices        34.6         41         45       46.2       46.4
hateful_memes OF-3B       rices        63.9       66.1       67.2       68.1       68.2
hateful_memes OF-3B-I     rices        65.2       65.7         66         65       67.7
hateful_memes OF-4B       rices        64.8       65.4       67.8       67.5       64.4
hateful_memes OF-4B-I     rices        66.2       66.8       69.3       67.1       62.2
hateful_memes OF-9B       rices        67.1       70.1       71.2       73.2       73.6
"""


def _read() -> dict[str, dict[tuple[str, str], dict[int, Published]]]:
    scores: dict[str, dict[tuple[str, str], dict[int, Published]]] = {}
    for line in _TABLE.strip().splitlines():
        dataset, model, demonstrations, *cells = line.split()
        pairs = [cell.partition("±") for cell in cells]
        scores.setdefault(dataset, {})[model, demonstrations] = {
            shots: Published(float(mean), float(deviation) if deviation else None)
            for shots, (mean, _, deviation) in zip(SHOTS, pairs, strict=True)
        }
    return scores


# By task, then by model and demonstrations ("random" or "rices"), then by shots.
PUBLISHED = _read()
