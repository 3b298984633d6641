from interop import (
    SIZES,
    ClassifierInterop,
    EmbeddingInterop,
    MaskedInterop,
    TokenClassifierInterop,
)

NAMES = {0: "나쁨", 1: "보통", 2: "좋음"}
LABELS = {"id2label": NAMES, "label2id": {name: number for number, name in NAMES.items()}}
ONE, MANY = {"num_labels": 1}, {"num_labels": 3, "problem_type": "multi_label_classification"}
BERT_SIZES = {key: value for key, value in SIZES.items() if key != "num_key_value_heads"}
# The window reaches two tokens to each side.
MODERN_SIZES = BERT_SIZES | {"local_attention": 4, "cls_token_id": 1, "sep_token_id": 2}


class TestBertMasked(MaskedInterop):
    family, sizes = "bert", BERT_SIZES
    cases = {
        "tied": {},
        "untied": {"tie_word_embeddings": False, "hidden_act": "gelu_new"},
        "other": {"type_vocab_size": 3, "layer_norm_eps": 1e-5, "hidden_act": "relu"},
    }


class TestBertClassifier(ClassifierInterop):
    family, sizes = "bert", BERT_SIZES
    cases = {"single": LABELS, "several": MANY, "number": ONE}


class TestBertTokenClassifier(TokenClassifierInterop):
    family, sizes = "bert", BERT_SIZES
    cases = {"named": LABELS}


class TestBertEmbedding(EmbeddingInterop):
    family, sizes = "bert", BERT_SIZES
    cases = {"mean": {}}


class TestRobertaMasked(MaskedInterop):
    family, sizes = "roberta", BERT_SIZES
    cases = {
        "tied": {"type_vocab_size": 1, "max_position_embeddings": 23},
        "untied": {"tie_word_embeddings": False, "hidden_act": "relu"},
    }


class TestRobertaClassifier(ClassifierInterop):
    family, sizes = "roberta", BERT_SIZES
    cases = {"single": LABELS, "several": MANY, "number": ONE}


class TestRobertaTokenClassifier(TokenClassifierInterop):
    family, sizes = "roberta", BERT_SIZES
    cases = {"named": LABELS}


class TestRobertaEmbedding(EmbeddingInterop):
    family, sizes = "roberta", BERT_SIZES
    cases = {"mean": {}}


class TestModernBertMasked(MaskedInterop):
    family, sizes = "modernbert", MODERN_SIZES
    cases = {
        "tied": {"num_hidden_layers": 4},
        "untied": {"tie_word_embeddings": False, "decoder_bias": False, "local_attention": 5},
        "biased": {
            "attention_bias": True,
            "mlp_bias": True,
            "norm_bias": True,
            "classifier_bias": True,
            "classifier_activation": "gelu_new",
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    }


class TestModernBertClassifier(ClassifierInterop):
    family, sizes = "modernbert", MODERN_SIZES
    cases = {
        "cls": LABELS,
        "mean": {"classifier_pooling": "mean"} | MANY,
        "number": {"classifier_bias": True} | ONE,
    }


class TestModernBertTokenClassifier(TokenClassifierInterop):
    family, sizes = "modernbert", MODERN_SIZES
    cases = {"named": LABELS}


class TestModernBertEmbedding(EmbeddingInterop):
    family, sizes = "modernbert", MODERN_SIZES
    cases = {"mean": {}}
