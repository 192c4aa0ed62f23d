"""GLSL of the portrait renderer.

Colours are linear until the last lines of `FRAGMENT`; lengths are cm.

The shirt is cut out by discarding fragments. It has a program of its own (`DRAWS_SHIRT`), because a program that may
discard cannot skip hidden fragments early.
"""

VERTEX = """#version 330
in vec3 position, normal;
in vec4 surface_a;  // skin, eyes, shirt: place on the mean head (xyz), ambient occlusion; hair: tangent, occlusion
in vec4 surface_b;  // skin: lip distance, beard, scalp hair; eyes: distance from the optical axis; hair: brightness, tip
in float part;
uniform vec3 camera;  // centre x, centre y, 1 / half height at z = 0
uniform float camera_distance;
out vec3 v_position, v_normal;
out vec4 v_a, v_b;
flat out float v_part;
void main() {
    v_position = position; v_normal = normal; v_a = surface_a; v_b = surface_b; v_part = part;
    float w = (camera_distance - position.z) / camera_distance;
    gl_Position = vec4((position.xy - camera.xy) * camera.z, -position.z / 60.0 * w, w);
}
"""

FRAGMENT = """#version 330
in vec3 v_position, v_normal;
in vec4 v_a, v_b;
flat in float v_part;
uniform vec3 key_direction, key_color, fill_direction, fill_color, ambient_color, rim_color;
uniform vec3 skin_color, lip_color, hair_color, brow_color, beard_color, eye_color, shirt_color, frame_color;
uniform vec4 brow_style;  // half thickness, shift up, density, tilt
uniform vec2 brow_points[10], lid_points[10];
uniform vec4 skin_style;  // blush, freckles, shine, shade under the eyes
uniform vec4 paint;       // beard opacity, scalp hair opacity, lashes, shade of the upper lid
uniform vec4 moles[4];    // x, y, radius, strength
uniform vec2 collar;      // height, depth of the V
uniform float camera_distance;
uniform mat3 light_matrix;
uniform sampler2DShadow shadow_map;
out vec4 fragment;

float hash(vec2 p) { return fract(sin(dot(p, vec2(127.1, 311.7))) * 43758.5453); }
float noise(vec2 p) {
    vec2 i = floor(p), f = fract(p);
    f = f * f * (3.0 - 2.0 * f);
    return mix(mix(hash(i), hash(i + vec2(1, 0)), f.x), mix(hash(i + vec2(0, 1)), hash(i + vec2(1, 1)), f.x), f.y);
}
float bump(vec2 p, vec2 center, vec2 radius) { vec2 d = (p - center) / radius; return exp(-dot(d, d)); }
float segment(vec2 p, vec2 a, vec2 b, out float t) {
    vec2 d = b - a;
    t = clamp(dot(p - a, d) / dot(d, d), 0.0, 1.0);
    return length(p - a - d * t);
}
// Distance to a curve of five points that starts at 5 * side, and how far along it the nearest point lies.
float brow_distance(vec2 p, int side, out float along) {
    float best = 9.0;
    for (int i = 0; i < 4; i++) {
        float t, d = segment(p, brow_points[side * 5 + i], brow_points[side * 5 + i + 1], t);
        if (d < best) { best = d; along = (float(i) + t) / 4.0; }
    }
    return best;
}
float lid_distance(vec2 p, int side) {
    float best = 9.0, t;
    for (int i = 0; i < 4; i++) best = min(best, segment(p, lid_points[side * 5 + i], lid_points[side * 5 + i + 1], t));
    return best;
}

vec3 skin(vec3 place, out float specular, out float gloss) {
    vec2 p = place.xy;
    vec2 mirrored = vec2(abs(p.x), p.y);
    float front = smoothstep(4.0, 8.0, place.z);
    vec3 albedo = skin_color * (0.97 + 0.06 * noise(p * 1.7));
    float cheeks = bump(mirrored, vec2(4.3, 0.3), vec2(2.2, 1.8)) * front;
    float nose = bump(p, vec2(0.0, 0.4), vec2(1.1, 1.2)) * front;
    albedo = mix(albedo, albedo * vec3(1.10, 0.78, 0.74), clamp(skin_style.x * (cheeks + 0.8 * nose), 0.0, 1.0));
    albedo *= 1.0 - skin_style.w * bump(mirrored, vec2(2.9, 2.9), vec2(1.5, 0.8)) * front * vec3(0.22, 0.3, 0.28);
    float lid = bump(mirrored, vec2(3.2, 4.35), vec2(1.6, 0.5)) * front;
    albedo *= 1.0 - paint.w * lid * vec3(0.30, 0.36, 0.34);
    float freckled = smoothstep(0.2, 0.9, cheeks + nose + 0.5 * bump(p, vec2(0, 1), vec2(3.7)));
    albedo *= 1.0 - skin_style.y * freckled * smoothstep(0.58, 0.72, noise(p * 2.9 + 3.7)) * vec3(0.25, 0.38, 0.42);
    for (int i = 0; i < 4; i++) {
        float d = length(p - moles[i].xy);
        albedo *= 1.0 - moles[i].w * front * smoothstep(moles[i].z, moles[i].z * 0.6, d) * vec3(0.6, 0.72, 0.75);
    }
    float lips = smoothstep(-0.14, 0.16, v_b.x);
    albedo = mix(albedo, lip_color * (0.85 + 0.3 * smoothstep(0.0, 0.5, v_b.x)), lips * 0.9);
    float beard = clamp(v_b.y * paint.x, 0.0, 0.97);
    albedo = mix(albedo, beard_color * (0.8 + 0.7 * noise(p * vec2(5.0, 2.2))), beard);
    float grain = noise(vec2(place.x * 5.0, place.y * 3.0) + place.z * 3.0) - 0.5;
    float scalp = smoothstep(0.0, 1.0, v_b.z + 0.6 * grain * v_b.z * (2.0 - v_b.z));
    albedo = mix(albedo, hair_color * (0.75 + 0.4 * noise(place.xz * 4.0)), scalp * paint.y);
    float brow = 0.0;
    if (front > 0.0 && p.y > 2.0) {
        int side = p.x < 0.0 ? 0 : 1;
        vec2 q = p - vec2(0.0, brow_style.y);
        q.y += brow_style.w * (mirrored.x - 3.5);
        float along = 0.0, d = brow_distance(q, side, along);
        along = side == 0 ? 1.0 - along : along;
        d -= brow_style.x * (1.0 - 0.6 * along * along);
        brow = smoothstep(0.20, -0.16, d) * brow_style.z * (0.72 + 0.45 * noise(q * vec2(6.0, 3.0) + q.yx * 2.0));
        brow = clamp(brow, 0.0, 0.95);
        albedo = mix(albedo, brow_color, brow);
        albedo = mix(albedo, vec3(0.02, 0.014, 0.012), paint.z * smoothstep(0.20, 0.03, lid_distance(p, side)));
    }
    specular = 0.13 * skin_style.z * (1.0 - 0.8 * beard) * (1.0 - brow) * (1.0 - scalp) + 0.22 * lips;
    gloss = mix(14.0, 40.0, lips);
    return albedo;
}

vec3 eye(float r, float height, inout float occlusion) {
    const float R = IRIS_RADIUS;
    vec3 albedo = mix(vec3(0.90, 0.88, 0.86), vec3(0.84, 0.70, 0.68), smoothstep(0.9, 1.4, r));
    vec3 iris = eye_color * (0.6 + 0.8 * smoothstep(0.15, 0.7, r)) * (1.0 - 0.75 * smoothstep(R - 0.2, R, r));
    iris = mix(vec3(0.008), iris, smoothstep(0.25, 0.36, r));
    occlusion *= mix(0.66, 1.0, smoothstep(4.35, 3.3, height));
    return mix(albedo, iris, smoothstep(R + 0.06, R - 0.05, r));
}

void main() {
    int part = int(v_part + 0.5);
    vec3 N = normalize(v_normal), V = normalize(vec3(0, 0, camera_distance) - v_position);
    vec3 albedo, tangent = vec3(0);
    float specular = 0.0, gloss = 20.0, occlusion = v_a.w, wrap = 0.4;
    if (part == SKIN) albedo = skin(v_a.xyz, specular, gloss);
    else if (part == MOUTH) { albedo = vec3(0.22, 0.05, 0.05); occlusion *= 0.5; }
    else if (part == SOCKET) albedo = skin_color * 0.4;
    else if (part == GUMS) { albedo = vec3(0.55, 0.18, 0.18); occlusion *= 0.65; specular = 0.1; }
    else if (part == TEETH) { albedo = vec3(0.95, 0.93, 0.88); occlusion = 0.4 + 0.6 * sqrt(occlusion); wrap = 0.6; }
    else if (part == EYE) { albedo = eye(v_b.x, v_a.y, occlusion); specular = 1.1; gloss = 90.0; wrap = 0.5; }
    else if (part == HAIR) {
        tangent = normalize(v_a.xyz);
        albedo = hair_color * max(0.45, 0.95 + 0.26 * v_b.x) * mix(0.8, 1.1, v_b.y);
    }
    else if (part == FRAME) { albedo = frame_color; specular = 0.6; gloss = 50.0; }
#ifdef DRAWS_SHIRT
    else {
        float v = collar.y * clamp(1.0 - abs(v_a.x) / 3.4, 0.0, 1.0) * step(0.0, v_a.z);
        float below = collar.x - v - (v_a.y + 0.12 * v_a.z);
        if (below < 0.0) discard;
        albedo = shirt_color * (0.94 + 0.1 * noise(v_a.xy * 3.0)) * mix(0.72, 1.0, smoothstep(0.55, 0.7, below));
        specular = 0.02;
    }
#endif
    vec3 lit = light_matrix * v_position * 0.5 + 0.5;
    float shadow = 0.0, bias = part == HAIR ? 0.022 : 0.012;
    for (int i = 0; i < 4; i++) {
        vec2 offset = (vec2(i & 1, i >> 1) - 0.5) * 1.6 / SHADOW_SIZE;
        shadow += texture(shadow_map, vec3(lit.xy + offset, lit.z - bias));
    }
    shadow = mix(part == HAIR ? 0.5 : 0.3, 1.0, shadow / 4.0);
    float facing = dot(N, key_direction);
    vec3 diffuse = vec3(max((facing + wrap) / (1.0 + wrap), 0.0));
    // light that travels under the skin comes out redder
    if (part == SKIN) diffuse = mix(diffuse, pow(diffuse, vec3(0.8, 1.08, 1.15)), 0.7);
    vec3 color = key_color * diffuse * shadow * mix(1.0, occlusion, 0.35);
    color += fill_color * max((dot(N, fill_direction) + 0.5) / 1.5, 0.0) * occlusion;
    color += ambient_color * (0.6 + 0.4 * N.y) * occlusion;
    color *= albedo;
    vec3 H = normalize(key_direction + V);
    float edge = pow(1.0 - max(dot(N, V), 0.0), part == HAIR ? 3.0 : 4.0);
    if (part == HAIR) {
        float along = dot(tangent, H);
        float shine = pow(max(1.0 - along * along, 0.0), 20.0) * max(facing + 0.3, 0.0);
        color += (hair_color * 0.9 + 0.05) * shine * key_color * 0.55 * shadow * (0.6 + 0.4 * v_b.x);
        color += hair_color * edge * rim_color * 0.7;
    } else {
        color += specular * pow(max(dot(N, H), 0.0), gloss) * key_color * shadow * occlusion;
        color += albedo * edge * rim_color * occlusion * (part == SKIN ? 0.9 : 0.3);
    }
    color *= 0.86;
    color = mix(color, color / (1.0 + 0.3 * color), 0.8);
    fragment = vec4(pow(clamp(color, 0.0, 1.0), vec3(1.0 / 2.2)), 1.0);
}
"""

DEPTH_VERTEX = """#version 330
in vec3 position;
uniform mat3 light_matrix;
void main() { gl_Position = vec4(light_matrix * position, 1.0); }
"""

DEPTH_FRAGMENT = """#version 330
void main() {}
"""
