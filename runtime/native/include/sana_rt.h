/* sana_rt.h: play sana-rt bundles from C and C++. This header is the manual.
 *
 *   sana_model*   a bundle that was opened: its manifest. Never changes; threads may share it.
 *   sana_session* a variant of a model on a device: graphs, weights, buffers. Plays one clip at a
 *                 time; starting another ends the one before.
 *   sana_clip*    a clip that is being made, frame by frame.
 *   sana_state*   a stream at rest, in memory; in a file it is the one that Python writes.
 *
 * Playing a clip:
 *
 *   sana_model* model;
 *   sana_session* session;
 *   sana_clip* clip;
 *   if (sana_model_open("out/bundle", &model)) puts(sana_model_error(model));
 *   if (sana_session_open(model, NULL, &session)) puts(sana_session_error(session));
 *   sana_clip_params params;
 *   sana_clip_params_init(&params, sizeof params);
 *   params.prompt = "a red circle moving right";
 *   if (sana_clip_start(session, &params, &clip)) puts(sana_clip_error(clip));
 *   sana_frames frames = {.struct_size = sizeof frames};
 *   sana_status status;
 *   while ((status = sana_clip_next(clip, &frames)) == SANA_OK) show(&frames);
 *   if (status != SANA_DONE) puts(sana_clip_error(clip));
 *   sana_clip_free(clip);
 *   sana_session_free(session);
 *   sana_model_free(model);
 *
 * Errors. Every function that can fail returns a sana_status. What happened, what was expected and
 * what to do is the text of the object, sana_..._error, until the next call on it. A function that
 * makes an object sets its handle also when it fails, so that the text can be read; such a handle
 * refuses everything else and is freed like any other. It is NULL only where there is no memory for
 * a handle. No C++ exception leaves the library.
 *
 * Ownership. Each handle is freed once, in any order: a clip keeps its session, a session its
 * model. ..._free(NULL) does nothing. What a function takes is copied before it returns. Pointers
 * that it gives belong to the object, until what its comment says.
 *
 * Threads. One thread at a time uses a session and its clips; sana_clip_cancel may be called from
 * any thread while the clip is not freed. Sessions are independent of each other. Callbacks run in
 * the thread that called the library, and must not free the object that calls them.
 *
 * Text is UTF-8; other bytes are refused. Sizes are pixels, frame counts those of the video.
 *
 * ABI. Structures begin with the size that the caller's header gives them, and new fields are added
 * at the end only, so that a program runs with any later library of the same sana_abi_version().
 * What has defaults other than zero is filled by an init function, which is given that size.
 */
#ifndef SANA_RT_H
#define SANA_RT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define SANA_API __attribute__((visibility("default")))
#elif defined(_WIN32) && defined(SANA_RT_BUILDING)
#define SANA_API __declspec(dllexport)
#else
#define SANA_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define SANA_ABI_VERSION 1

/* The ABI of the library that runs; equal to SANA_ABI_VERSION, or the program must not go on. */
SANA_API int32_t sana_abi_version(void);
/* The release, as "0.1.0". */
SANA_API const char* sana_version(void);

/* --- Status ----------------------------------------------------------------------------------- */

/* Named like Python's errors. Numbers never change; later releases may add some. */
typedef enum sana_status {
  SANA_OK = 0,
  SANA_DONE = 1,                        /* no frames are left; not an error */
  SANA_INTERNAL_ERROR = 2,              /* a defect of the library; please report it */
  SANA_MEMORY_ERROR = 3,                /* the host has no memory left */
  SANA_USAGE_ERROR = 10,                /* an option that cannot be honoured, a handle that failed */
  SANA_REQUEST_ERROR = 11,              /* what the model cannot serve: length, size, prompt, noise */
  SANA_CANCELED_ERROR = 12,             /* the caller ended the clip */
  SANA_STATE_ERROR = 13,                /* a state that is damaged, or of another model or size */
  SANA_NON_FINITE_ERROR = 14,           /* a graph wrote NaN or infinity */
  SANA_STORAGE_ERROR = 20,              /* a file could not be read or written */
  SANA_DISK_FULL_ERROR = 21,            /* no room left; nothing half-written keeps its name */
  SANA_BUNDLE_FILE_ERROR = 22,          /* a listed file is absent, or not as listed */
  SANA_TOKENIZER_ERROR = 23,            /* a tokenizer that is damaged, or not the encoder's */
  SANA_MANIFEST_MISSING_ERROR = 30,     /* no manifest.json: no bundle, or an interrupted one */
  SANA_MANIFEST_SYNTAX_ERROR = 31,      /* not JSON, or a value of the wrong type */
  SANA_MANIFEST_VERSION_ERROR = 32,     /* another format, or another version of it */
  SANA_MANIFEST_FIELD_ERROR = 33,       /* an unknown or a missing field */
  SANA_MANIFEST_VALUE_ERROR = 34,       /* a value outside the range of its field */
  SANA_MANIFEST_DUPLICATE_ERROR = 35,   /* a key, a path or a tensor listed twice */
  SANA_MANIFEST_LIMIT_ERROR = 36,       /* a named limit of the format is exceeded */
  SANA_MANIFEST_PATH_ERROR = 37,        /* a path that is not in normal form, or leaves the bundle */
  SANA_MANIFEST_REFERENCE_ERROR = 38,   /* something that is named but not there */
  SANA_MANIFEST_SHAPE_ERROR = 39,       /* a tensor with an impossible dtype, name or dimension */
  SANA_BACKEND_ERROR = 50,              /* no backend plays the variant, each with its reason */
  SANA_BINDING_ERROR = 51,              /* a buffer that does not fit its graph */
  SANA_DEVICE_MEMORY_ERROR = 52,        /* the memory plan does not fit the device */
  SANA_DEVICE_LOST_ERROR = 53           /* the GPU failed or does not answer: restart the process */
} sana_status;

/* The name of Python's error, as "ManifestSyntaxError"; "OK" and "Done" for what is none. */
SANA_API const char* sana_status_name(sana_status status);

/* --- Devices ---------------------------------------------------------------------------------- */

typedef struct sana_device_info {
  size_t struct_size;
  const char* backend; /* as below; valid for ever */
  bool available;
  const char* reason; /* why it is not available, or ""; valid until the thread's next call */
} sana_device_info;

/* Backends of this build, in the order in which a session tries them:
 *
 *   "onnxruntime-cuda"  ONNX Runtime's CUDA provider, if its library has one; bfloat16 and float32
 *   "onnxruntime-rtx"   NVIDIA's TensorRT-RTX plug-in for ONNX Runtime; also graphs in operators
 *                       that only TensorRT has (NVFP4)
 *   "onnxruntime"       ONNX Runtime on the CPU; float32
 *
 * Describing loads the driver, and the plug-in where it is found, to see whether they work. That is
 * the process's plug-in from then on: sessions whose option plugin names another one are refused.
 * Where that option is used, name the same library in $SANA_RT_PLUGIN, or describe nothing. */
SANA_API size_t sana_device_count(void);
SANA_API sana_status sana_device_describe(size_t index, sana_device_info* info);

/* --- Model ------------------------------------------------------------------------------------ */

typedef struct sana_model sana_model;

typedef struct sana_model_info {
  size_t struct_size;
  const char* name; /* this and variants: valid as long as the model */
  int32_t height, width, num_frames, fps;  /* what is made unless asked otherwise */
  int32_t height_multiple, width_multiple; /* sizes are multiples of these */
  int32_t temporal_stride;                 /* clips have temporal_stride * k + 1 frames */
  int32_t longest_clip;                    /* the most frames that the model has positions for */
  bool causal;                             /* block-causal: clips can be streamed */
  size_t variant_count;
} sana_model_info;

typedef struct sana_variant_info {
  size_t struct_size;
  const char* name;
  const char* dtype;
  const char* quantization; /* the recipe, or NULL */
  bool playable;            /* by the CPU backend */
  const char* refusal;      /* why not, or "" */
  bool playable_on_gpu;     /* by one of the GPU's backends, where it is available */
  const char* gpu_refusal;  /* why not, or "" */
} sana_variant_info;

/* Reads and checks the manifest, and that every listed file has its listed size. */
SANA_API sana_status sana_model_open(const char* folder, sana_model** model);
SANA_API void sana_model_free(sana_model* model);
SANA_API const char* sana_model_error(const sana_model* model);
SANA_API sana_status sana_model_describe(const sana_model* model, sana_model_info* info);
SANA_API sana_status sana_model_variant(const sana_model* model, size_t index,
                                        sana_variant_info* info);

/* --- Session ---------------------------------------------------------------------------------- */

typedef struct sana_session sana_session;

typedef enum sana_stage {
  SANA_STAGE_ENCODE = 0,  /* prompts */
  SANA_STAGE_LOAD = 1,    /* graphs */
  SANA_STAGE_DENOISE = 2, /* passes of the transformer */
  SANA_STAGE_DECODE = 3   /* latent frames */
} sana_stage;

typedef struct sana_progress {
  size_t struct_size;
  sana_stage stage;
  int64_t done, total;
} sana_progress;

/* Called between steps. Returning false cancels the clip. */
typedef bool (*sana_progress_callback)(void* user, const sana_progress* progress);

typedef enum sana_log_level { SANA_LOG_INFO = 0, SANA_LOG_WARNING = 1 } sana_log_level;

/* Told what is no error: that the end of a prompt was left out. */
typedef void (*sana_log_callback)(void* user, sana_log_level level, const char* message);

typedef struct sana_session_options {
  size_t struct_size;
  const char* variant;    /* NULL: the one that is not quantized and suits the backend best */
  const char* backend;    /* NULL: the first of sana_device_describe that can play the model */
  int32_t threads;        /* of the CPU; 0: all that the process may use */
  bool keep_text_encoder; /* keep its weights for the next prompt instead of making room */
  bool check_finite;      /* look at every output of every graph; slow */
  sana_progress_callback progress;
  void* progress_user;
  sana_log_callback log;
  void* log_user;
  double timeout;     /* seconds that a GPU may take to answer before it is given up; 0: 600. Waits
                       * inside of ONNX Runtime, as where it loads a graph, are not limited. */
  const char* plugin; /* the library of NVIDIA's plug-in, the same for all sessions of a process;
                       * NULL: $SANA_RT_PLUGIN, else where its wheel puts it beside ONNX Runtime */
  const char* kernel_cache; /* the folder for what the plug-in compiles; NULL: as in Python,
                             * sana-rt/kernels in $XDG_CACHE_HOME, else ~/.cache; nothing is
                             * kept where neither is an absolute path */
} sana_session_options;

/* struct_size is sizeof(sana_session_options) as the caller's header has it. */
SANA_API void sana_session_options_init(sana_session_options* options, size_t struct_size);
/* options may be NULL. Weights are loaded when they are first needed. */
SANA_API sana_status sana_session_open(const sana_model* model, const sana_session_options* options,
                                       sana_session** session);
SANA_API void sana_session_free(sana_session* session);
SANA_API const char* sana_session_error(const sana_session* session);
/* The variant and the backend that it plays; valid as long as the session. */
SANA_API const char* sana_session_variant(const sana_session* session);
SANA_API const char* sana_session_backend(const sana_session* session);

/* --- State ------------------------------------------------------------------------------------ */

typedef struct sana_state sana_state;

/* Reads a file that sana_state_save, or Python's State.save, wrote. */
SANA_API sana_status sana_state_load(const char* path, sana_state** state);
/* Writes a file that is there whole or not at all. */
SANA_API sana_status sana_state_save(sana_state* state, const char* path);
SANA_API void sana_state_free(sana_state* state);
SANA_API const char* sana_state_error(const sana_state* state);

/* --- Clip ------------------------------------------------------------------------------------- */

typedef struct sana_clip sana_clip;

typedef enum sana_solver {
  SANA_SOLVER_DEFAULT = 0,
  SANA_SOLVER_DPMPP_2M = 1,
  SANA_SOLVER_FLOW_EULER = 2,
  SANA_SOLVER_RENOISE = 3
} sana_solver;

#define SANA_MOTION_DEFAULT INT32_MIN
#define SANA_MOTION_NONE (INT32_MIN + 1) /* say nothing about motion */

typedef struct sana_timed_prompt {
  double seconds; /* of the stream; it begins at the chunk whose start is nearest */
  const char* prompt;
} sana_timed_prompt;

/* What to make. sana_clip_params_init leaves everything to the model: zero and NULL are "the
 * model's", or, with resume, "as the stream was made". */
typedef struct sana_clip_params {
  size_t struct_size;
  const char* prompt;
  const char* negative_prompt;
  int32_t height, width;
  int32_t num_frames;
  double seconds; /* num_frames in another way: at least so long; give one of the two */
  int32_t num_inference_steps;
  double guidance_scale; /* negative: the model's; 1 leaves the negative prompt out */
  sana_solver solver;
  double flow_shift;
  int32_t fps;
  int32_t motion_score; /* or SANA_MOTION_DEFAULT, SANA_MOTION_NONE */
  uint64_t seed;
  bool has_seed;           /* whether seed is meant; else it is 0, or the stream's */
  bool lowercase;          /* the prompt, as diffusers does */
  const double* timesteps; /* of the solver 'renoise' */
  size_t timestep_count;

  const uint8_t* image; /* the first frame, RGB8 [height][width][3] */
  size_t image_stride;  /* bytes from row to row; 0: 3 * width */
  const float* noise;   /* what is denoised, [C][T][h][w] */
  size_t noise_count;   /* floats */
  /* What the transformer sees of the prompt, instead of its text: [batch][S][Ct] and [batch][S],
   * the negative prompt's first if there is guidance. */
  const float* prompt_embeds;
  size_t prompt_embed_count;
  const int64_t* prompt_mask;
  size_t prompt_mask_count;

  /* Of streams: a block-causal model, chunk by chunk, in memory that does not grow. */
  bool stream;
  const sana_timed_prompt* prompts; /* those that take over */
  size_t prompt_count;
  bool recommit;            /* remember the chunk before a change under the new prompt */
  const sana_state* resume; /* continue this stream; lengths count from its beginning */
} sana_clip_params;

SANA_API void sana_clip_params_init(sana_clip_params* params, size_t struct_size);

typedef struct sana_memory {
  size_t struct_size;
  uint64_t weight_bytes; /* of the graphs that are loaded at one time, at most */
  uint64_t buffer_bytes; /* allocated before the first step, and never more */
  uint64_t total_bytes;  /* both; activations come on top where the backend sizes them as it runs */
  const char* table;     /* the plan for a person; valid until the session's next plan */
} sana_memory;

/* The memory that sana_clip_start would need; allocates nothing on the device. */
SANA_API sana_status sana_session_plan(sana_session* session, const sana_clip_params* params,
                                       sana_memory* memory);

/* Frames u8 [count][height][width][3]. */
typedef struct sana_frames {
  size_t struct_size;
  const uint8_t* rgb;  /* the library's, until the next call on the clip */
  size_t count;        /* frames, at least 1 */
  int32_t height, width;
  size_t stride;       /* bytes from row to row */
  size_t frame_stride; /* bytes from frame to frame */
  int64_t first_frame; /* its index in the clip, from 0 */
} sana_frames;

/* Copies a frame to the caller's memory, rows `stride` bytes apart. */
SANA_API sana_status sana_frames_copy(const sana_frames* frames, size_t index, uint8_t* rgb,
                                      size_t stride);

/* Checks what is asked for, encodes the prompts and loads the graphs. Ends the session's clip of
 * before, unless what is asked for is refused. */
SANA_API sana_status sana_clip_start(sana_session* session, const sana_clip_params* params,
                                     sana_clip** clip);
/* Makes the next frames: SANA_OK with frames, SANA_DONE after the last. An error ends the clip:
 * it is returned again. */
SANA_API sana_status sana_clip_next(sana_clip* clip, sana_frames* frames);
/* Called with frames as soon as they are decoded. Returning false cancels the clip. */
typedef bool (*sana_frames_callback)(void* user, const sana_frames* frames);
/* All frames that are left, to a callback. SANA_OK after the last. */
SANA_API sana_status sana_clip_play(sana_clip* clip, sana_frames_callback callback, void* user);
/* Ends the clip with SANA_CANCELED_ERROR at its next step; from any thread. */
SANA_API void sana_clip_cancel(sana_clip* clip);
/* What continues the stream after the frames that were taken from it, also after a cancel. */
SANA_API sana_status sana_clip_state(sana_clip* clip, sana_state** state);
SANA_API void sana_clip_free(sana_clip* clip);
SANA_API const char* sana_clip_error(const sana_clip* clip);

#ifdef __cplusplus
}
#endif

#endif
