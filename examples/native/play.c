/* Plays a bundle from a prompt in plain C, and writes each frame as a PPM picture. */
#include <stdio.h>
#include <stdlib.h>

#include "sana_rt.h"

static int failed(sana_status status, const char* text) {
  fprintf(stderr, "%s: %s\n", sana_status_name(status), text);
  return 1;
}

static bool write_frames(void* user, const sana_frames* frames) {
  (void)user;
  for (size_t i = 0; i < frames->count; ++i) {
    char name[32];
    snprintf(name, sizeof name, "frame%05lld.ppm", (long long)frames->first_frame + (long long)i);
    FILE* file = fopen(name, "wb");
    if (file == NULL) return false; /* cancels */
    fprintf(file, "P6 %d %d 255\n", frames->width, frames->height);
    fwrite(frames->rgb + i * frames->frame_stride, 1, frames->frame_stride, file);
    if (fclose(file) != 0) return false;
  }
  return true;
}

static int play(sana_session* session, const char* prompt) {
  sana_clip_params params;
  sana_clip_params_init(&params, sizeof params);
  params.prompt = prompt;
  sana_clip* clip = NULL;
  sana_status status = sana_clip_start(session, &params, &clip);
  if (status == SANA_OK) status = sana_clip_play(clip, write_frames, NULL);
  int code = status == SANA_OK ? 0 : failed(status, sana_clip_error(clip));
  sana_clip_free(clip);
  return code;
}

int main(int count, char** arguments) {
  if (count != 3) {
    fprintf(stderr, "play_c BUNDLE PROMPT\n");
    return 2;
  }
  if (sana_abi_version() != SANA_ABI_VERSION) {
    fprintf(stderr, "The library has another ABI than this program.\n");
    return 1;
  }
  sana_model* model = NULL;
  sana_session* session = NULL;
  int code = 0;
  sana_status status = sana_model_open(arguments[1], &model);
  if (status != SANA_OK) {
    code = failed(status, sana_model_error(model));
  } else if ((status = sana_session_open(model, NULL, &session)) != SANA_OK) {
    code = failed(status, sana_session_error(session));
  } else {
    code = play(session, arguments[2]);
  }
  sana_session_free(session);
  sana_model_free(model);
  return code;
}
