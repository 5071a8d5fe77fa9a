// One layer's attention of a step: turn and store, then attend.

#include "attention.h"

extern "C" void vlmflow_attend(const vlmflow::Cache* cache, const vlmflow::Step* step,
                               const vlmflow::Call* call) {
    vlmflow::store_kv(*cache, *step, *call);
    if (step->num_sequences > step->num_decodes) vlmflow::paged_prefill(*cache, *step, *call);
    if (step->num_decodes) vlmflow::paged_decode(*cache, *step, *call);
}
