#!/usr/bin/perl
# A guest list in Mojolicious::Lite: signed cookies, uploads, a long poll, a stream.
use Mojolicious::Lite -signatures;
use Digest::MD5 'md5_hex';
use Mojo::File 'path';

my $var = path(__FILE__)->dirname->child('var')->make_path;
my $news = $var->child('news');

# Every worker must know the same secret, and nobody else. It is made once.
my $secret = $var->child('secret');
if (!-e $secret) {
    open my $random, '<:raw', '/dev/urandom' or die "/dev/urandom: $!";
    read $random, my $bytes, 32;
    $secret->touch->chmod(0600)->open('>')->print(unpack 'H*', $bytes);
}
app->secrets([$secret->slurp]);

get '/' => sub ($c) {
    my $name = $c->session('name') or return $c->render(text => "Nobody is logged in\n");
    my $visits = $c->session->{visits} += 1;
    $c->render(text => "Hello $name, visit $visits, process $$\n");
};

post '/login' => sub ($c) {
    $c->session(name => $c->param('name'), visits => 0);
    $c->render(text => "Welcome, process $$\n");
};

post '/upload' => sub ($c) {
    my $file = $c->req->upload('file') or return $c->render(text => "no file\n", status => 400);
    $c->render(text => join(' ', $file->filename, $file->size, md5_hex($file->slurp)) . "\n");
};

# Answers when there is news, or after a minute. Meanwhile the worker is busy:
# workers.max must be above the number of those who wait. Under PSGI the answer
# is what there is when the action returns: render_later would be a 404.
get '/wait' => sub ($c) {
    my $until = time + 60;
    select undef, undef, undef, 0.1 while !-e $news && time < $until;
    my $name = $c->session('name') // 'You';
    $c->render(text => -e $news ? "$name, process $$: " . $news->slurp : "no news\n");
};

post '/news' => sub ($c) {
    my $new = $var->child('news.new');
    $new->open('>')->print($c->param('text'), "\n");
    $new->move_to($news);
    $c->render(text => "told\n");
};

get '/stream' => sub ($c) {
    my @lines = map { "line $_\n" } 1 .. 3;
    my $next;
    $next = sub ($c, @) { $c->write_chunk(@lines ? (shift @lines, $next) : '') };
    $c->res->headers->content_type('text/plain');
    $c->$next;
};

app->start;
