"""The vision-language BERTs on image regions: one family, its members are presets.

How the presets differ, in the words of `MMRegionBertConfig`; all else is BERT-base (Devlin et al. 2019).

    preset      blocks                     location  fusion  norms        a region also gets
    lxmert      9 text, 5 region, 5 cross  box4      mean    parts        nothing
    vilbert     12 text, 6 region, 6 co    box5      sum     own          nothing
    vl-bert     12 joint                   sinusoid  concat  parts, text  segment 2, position after text
    uniter      12 joint                   box7      sum     parts, own   segment 1
    oscar       12 joint                   box6      concat  none         nothing
    visualbert  12 joint                   none      sum     text         segment 1, position; own tables

- Blocks: "joint" is self-attention over text and regions with one set of weights: one stream. In
  "text" and "region" blocks each is alone. "cross" blocks (LXMERT) have one set of weights for both
  directions, "co" blocks (ViLBERT) one for each; these alternate with its last six text and its six region
  blocks, in which regions are 1024 wide.
- Norms: of the projected feature and location ("parts"), then of the token, its "own" or that of "text".
- ViLBERT and VL-BERT put the whole image before the regions. VL-BERT also adds its projected feature to every
  token of the text, a learned [IMG] to every region, and a learned [END] behind the last.
- OSCAR's object tags are a second segment of the text.
- Hidden regions are zeros, in UNITER and VL-BERT a learned vector.

    preset      pooled vector           tasks of pre-training                   sections of the paper
    lxmert      tanh of [CLS]           mlm itm object attribute smooth answer  2.1, 2.2, 2.3, 3.1
    vilbert     relu, text times image  mlm itm mrc_kl                          2.2, 3.1
    vl-bert     tanh of [CLS]           mlm mrc_kl                              3.2, 3.3
    uniter      tanh of [CLS]           mlm itm wra mrfr mrc_kl                 3.1, 3.2
    oscar       tanh of [CLS]           mlm tags                                3
    visualbert  tanh of [CLS]           mlm itm                                 3.2, 3.3

UNITER draws one of its tasks for each batch, the others sum theirs. Papers: `presets_region_bert`.
"""
